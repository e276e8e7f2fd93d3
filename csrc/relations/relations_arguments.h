// The arguments of the relations operator on every device, checked.
#pragma once

#include "../common/tensors.h"

namespace amkd::relations {

struct Arguments {
  Tensor student, teacher;  // [count, width], unit column stride
  int64_t count;
  double distance_weight, angle_weight;
  ScalarType type, statistics;

  Arguments(const Tensor& student_in, const Tensor& teacher_in, double distance_weight_in, double angle_weight_in)
      : student(student_in),
        teacher(teacher_in),
        distance_weight(distance_weight_in),
        angle_weight(angle_weight_in),
        type(student_in.scalar_type()),
        statistics(statistics_type(type)) {
    STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2, "student, teacher: must be [B, D]");
    count = student.size(0);
    STD_TORCH_CHECK(teacher.size(0) == count, "teacher: must have one row a row of student");
    STD_TORCH_CHECK(teacher.scalar_type() == type, "teacher: must have the dtype of student");
    check_storage(student, "student");
    check_device(teacher, "teacher", student);
    student = with_unit_columns(student);
    teacher = with_unit_columns(teacher);
  }
};

}  // namespace amkd::relations
