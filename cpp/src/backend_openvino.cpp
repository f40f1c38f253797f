// OpenVINO: reads the bundle's IR from memory and uses the caller's arrays as tensors.
#include <openvino/openvino.hpp>

#include "backend.hpp"
#include "error.hpp"

namespace m2h::detail {
namespace {

ov::element::Type element(Type type) {
  switch (type) {
    case Type::kFloat32: return ov::element::f32;
    case Type::kUint16: return ov::element::u16;
    case Type::kUint8: return ov::element::u8;
  }
  return ov::element::dynamic;
}

ov::Shape shape_of(const std::vector<std::int64_t>& sides) { return ov::Shape(sides.begin(), sides.end()); }

class OpenVino final : public Backend {
 public:
  OpenVino(const Bundle& bundle, const BackendOptions& options) : where_(bundle.path) {
    const Manifest& manifest = bundle.manifest;
    const std::string device = options.device.empty() ? manifest.text("device", "CPU") : options.device;
    const auto model = read(bundle);
    model->reshape({{manifest.input_name, ov::PartialShape(shape_of(manifest.input_shape()))}});
    compiled_ = core_.compile_model(model, device, properties(manifest, options, device));
    request_ = compiled_.create_infer_request();
    input_ = compiled_.input(manifest.input_name);
    input_shape_ = shape_of(manifest.input_shape());
    check(input_, ov::element::u8, input_shape_, manifest.input_name);
    for (const Output& output : manifest.outputs) {
      ports_.push_back(compiled_.output(output.name));
      check(ports_.back(), element(output.type), shape_of(output.shape), output.name);
    }
    bound_.resize(ports_.size(), nullptr);
    description_ = "OpenVINO " + std::string(ov::get_openvino_version().buildNumber) + ", " + device;
  }

  std::string description() const override { return description_; }

  void run(const std::uint8_t* input, const std::vector<void*>& outputs) override {
    if (input != bound_input_) {
      // OpenVINO has no const tensors; it only reads inputs.
      request_.set_tensor(input_, ov::Tensor(ov::element::u8, input_shape_, const_cast<std::uint8_t*>(input)));
      bound_input_ = input;
    }
    for (std::size_t i = 0; i < ports_.size(); ++i) {
      if (outputs[i] == bound_[i]) continue;
      request_.set_tensor(ports_[i], ov::Tensor(ports_[i].get_element_type(), ports_[i].get_shape(), outputs[i]));
      bound_[i] = outputs[i];
    }
    request_.infer();
  }

 private:
  std::shared_ptr<ov::Model> read(const Bundle& bundle) {
    const std::string& file = bundle.manifest.engine_file;
    const std::size_t dot = file.rfind('.');
    const std::vector<char>& xml = bundle.file(file);
    const std::string text(xml.begin(), xml.end());
    // For text that is not IR, OpenVINO tries all of its formats.
    if (dot == std::string::npos || file.substr(dot) != ".xml" || text.substr(0, 4096).find("<net") == std::string::npos) {
      throw Failure(where_ + ": " + file + " is not an OpenVINO IR; build the bundle again");
    }
    weights_ = bundle.file(file.substr(0, dot) + ".bin");  // the model keeps pointers into it
    return core_.read_model(text, ov::Tensor(ov::element::u8, {weights_.size()}, weights_.data()));
  }

  // The bundle's precision if the device has it, else f32: OpenVINO itself would replace f16 by bf16.
  std::string precision(const Manifest& manifest, const std::string& device) {
    const std::string wanted = manifest.text("inference_precision", "f32");
    const std::string capability = wanted == "bf16" ? "BF16" : wanted == "f16" ? "FP16" : "FP32";
    try {
      for (const std::string& name : core_.get_property(device, ov::device::capabilities)) {
        if (name == capability) return wanted;
      }
    } catch (const ov::Exception&) {
      return wanted;  // a virtual device, which selects among others
    }
    return "f32";
  }

  ov::AnyMap properties(const Manifest& manifest, const BackendOptions& options, const std::string& device) {
    ov::AnyMap map;
    map["PERFORMANCE_HINT"] = manifest.text("performance_hint", "LATENCY");
    map["INFERENCE_PRECISION_HINT"] = precision(manifest, device);
    const int threads = options.threads > 0 ? options.threads : manifest.threads;
    if (threads > 0 && device == "CPU") map["INFERENCE_NUM_THREADS"] = threads;
    return map;
  }

  template <typename Port>
  void check(const Port& port, ov::element::Type type, const ov::Shape& shape, const std::string& name) const {
    if (port.get_element_type() != type || port.get_partial_shape() != ov::PartialShape(shape)) {
      throw Failure(where_ + ": '" + name + "' of the engine is not what the manifest says: build the bundle again");
    }
  }

  std::string where_, description_;
  std::vector<char> weights_;
  ov::Core core_;
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
  ov::Output<const ov::Node> input_;
  ov::Shape input_shape_;
  std::vector<ov::Output<const ov::Node>> ports_;
  const std::uint8_t* bound_input_ = nullptr;
  std::vector<void*> bound_;
};

// OpenVINO's messages begin with a location in its sources.
std::string reason(const std::string& text) {
  std::size_t start = 0;
  while (start < text.size()) {
    const std::size_t end = std::min(text.find('\n', start), text.size());
    const std::string line = text.substr(start, end - start);
    if (!line.empty() && line.rfind("Exception from", 0) != 0 && line.rfind("Check '", 0) != 0) return first_line(line);
    start = end + 1;
  }
  return first_line(text);
}

class Translated final : public Backend {
 public:
  Translated(const Bundle& bundle, const BackendOptions& options) : where_(bundle.path) {
    try {
      inner_ = std::make_unique<OpenVino>(bundle, options);
    } catch (const ov::Exception& error) {
      throw Failure(where_ + ": OpenVINO does not take the engine: " + reason(error.what()));
    }
  }

  std::string description() const override { return inner_->description(); }

  void run(const std::uint8_t* input, const std::vector<void*>& outputs) override {
    try {
      inner_->run(input, outputs);
    } catch (const ov::Exception& error) {
      throw Failure(where_ + ": OpenVINO could not run: " + reason(error.what()));
    }
  }

 private:
  std::string where_;
  std::unique_ptr<OpenVino> inner_;
};

}  // namespace

std::unique_ptr<Backend> open_openvino(const Bundle& bundle, const BackendOptions& options) {
  return std::make_unique<Translated>(bundle, options);
}

}  // namespace m2h::detail
