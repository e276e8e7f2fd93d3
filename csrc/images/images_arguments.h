// The arguments of the images operators on every device, checked.
#pragma once

#include "../common/tensors.h"
#include "images.h"

namespace amkd::images {

struct CropFlipArguments : CropFlip {
  ScalarType type;

  CropFlipArguments(const Tensor& out_in, const Tensor& pixels_in, const std::optional<Tensor>& index_in,
                    const Tensor& shift_in, const std::optional<Tensor>& seeds_in, double scale_in, int64_t pad_in,
                    bool flip_in, int64_t seed_in)
      : type(out_in.scalar_type()) {
    STD_TORCH_CHECK(pixels_in.dim() == 4 && pixels_in.is_contiguous(), "pixels: must be [N, C, H, W], contiguous");
    STD_TORCH_CHECK(pixels_in.scalar_type() == ScalarType::Byte, "pixels: must be uint8");
    check_storage(pixels_in, "pixels");
    images = pixels_in.size(0);
    channels = pixels_in.size(1);
    height = pixels_in.size(2);
    width = pixels_in.size(3);
    samples = index_in.has_value() ? index_in->size(0) : images;
    STD_TORCH_CHECK(channels * height * width < kMostValues, "pixels: more than 2^30 values an image");
    STD_TORCH_CHECK(pad_in >= 0 && pad_in < kMostValues, "pad: must be from 0 to 2^30 - 1");
    STD_TORCH_CHECK(images > 0 || samples == 0, "index: must be empty, there is no image");
    last = lies_last(out_in);
    index = index_in.has_value() ? numbers(*index_in, "index", pixels_in, samples) : nullptr;
    seeds = seeds_in.has_value() ? numbers(*seeds_in, "seeds", pixels_in, 1) : nullptr;
    STD_TORCH_CHECK(shift_in.numel() == channels && shift_in.is_contiguous(), "shift: must have one number a channel");
    STD_TORCH_CHECK(shift_in.scalar_type() == statistics_type(type), "shift: wrong dtype");
    check_device(shift_in, "shift", pixels_in);
    check_device(out_in, "out", pixels_in);
    pixels = static_cast<const uint8_t*>(pixels_in.const_data_ptr());
    shift = shift_in.const_data_ptr();
    out = out_in.mutable_data_ptr();
    scale = scale_in;
    pad = pad_in;
    flip = flip_in;
    seed = seed_in;
  }

 private:
  bool lies_last(const Tensor& tensor) const {
    const int64_t sizes[] = {samples, channels, height, width};
    STD_TORCH_CHECK(tensor.dim() == 4, "out: must be [B, C, H, W]");
    for (int64_t i = 0; i < 4; ++i) STD_TORCH_CHECK(tensor.size(i) == sizes[i], "out: must be [B, C, H, W]");
    if (tensor.is_contiguous()) return false;
    const int64_t strides[] = {channels * height * width, 1, channels * width, channels};
    for (int64_t i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(sizes[i] == 1 || tensor.stride(i) == strides[i], "out: must be contiguous or channels_last");
    }
    return true;
  }

  static const int64_t* numbers(const Tensor& tensor, const char* name, const Tensor& pixels, int64_t count) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.is_contiguous() && tensor.numel() == count, name,
                    ": must be int64, contiguous, one number a sample or one at all");
    check_device(tensor, name, pixels);
    return static_cast<const int64_t*>(tensor.const_data_ptr());
  }
};

}  // namespace amkd::images
