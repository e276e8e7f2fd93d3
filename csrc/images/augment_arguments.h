// The arguments of images_joint_augment on every device, checked.
#pragma once

#include "../common/tensors.h"
#include "augment.h"
#include "images.h"

namespace amkd::images {

struct JointAugmentArguments : JointAugment {
  JointAugmentArguments(const Tensor& out_in, const Tensor& pixels_in, const std::optional<Tensor>& rows_in,
                        const std::optional<Tensor>& seeds_in, int64_t threshold_in, int64_t operations_in,
                        int64_t fill_in, int64_t seed_in) {
    STD_TORCH_CHECK(pixels_in.dim() == 4 && pixels_in.is_contiguous(), "pixels: must be [B, C, H, W], contiguous");
    STD_TORCH_CHECK(pixels_in.scalar_type() == ScalarType::Byte, "pixels: must be uint8");
    check_storage(pixels_in, "pixels");
    images = pixels_in.size(0);
    channels = pixels_in.size(1);
    height = pixels_in.size(2);
    width = pixels_in.size(3);
    STD_TORCH_CHECK(channels == 1 || channels == 3, "pixels: must have 1 or 3 channels");
    STD_TORCH_CHECK(height <= kMostSide && width <= kMostSide, "pixels: a side is longer than 2^14");
    STD_TORCH_CHECK(channels * height * width < kMostValues, "pixels: more than 2^30 values an image");
    STD_TORCH_CHECK(fill_in >= 0 && fill_in < kLevels, "fill: must be from 0 to 255");
    STD_TORCH_CHECK(threshold_in >= 0 && threshold_in <= int64_t{1} << 32, "threshold: must be from 0 to 2^32");
    rows = rows_in.has_value() ? numbers(*rows_in, "rows", pixels_in, images) : nullptr;
    seeds = seeds_in.has_value() ? numbers(*seeds_in, "seeds", pixels_in, 1) : nullptr;
    pixels = static_cast<const uint8_t*>(pixels_in.const_data_ptr());
    out = static_cast<uint8_t*>(out_in.mutable_data_ptr());
    threshold = threshold_in;
    operations = static_cast<int32_t>(operations_in & ((1 << kOperations) - 1));
    fill = static_cast<int32_t>(fill_in);
    seed = seed_in;
  }

  bool empty() const { return images == 0 || height == 0 || width == 0; }

 private:
  static const int64_t* numbers(const Tensor& tensor, const char* name, const Tensor& like, int64_t count) {
    STD_TORCH_CHECK(tensor.numel() == count && tensor.is_contiguous(), name, ": must have one number an image");
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, name, ": must be int64");
    check_device(tensor, name, like);
    return static_cast<const int64_t*>(tensor.const_data_ptr());
  }
};

}  // namespace amkd::images
