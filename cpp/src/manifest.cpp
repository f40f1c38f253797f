#include "manifest.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "error.hpp"

namespace m2h::detail {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kSchemaVersion = 1;
constexpr std::int64_t kMaxSide = 16384;
constexpr std::size_t kMaxText = 4096;

// Fields of one JSON object, with errors that name the file and the field.
class Fields {
 public:
  Fields(const Json& object, std::string where, std::string path)
      : object_(object), where_(std::move(where)), path_(std::move(path)) {
    if (!object_.is_object()) fail("", "expected an object");
  }

  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    const std::string place = key.empty() ? path_ : path_.empty() ? key : path_ + "." + key;
    throw Failure(where_ + ": " + (place.empty() ? "the whole" : place) + ": " + what);
  }

  const Json* find(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  const Json& at(const std::string& key) const {
    const Json* value = find(key);
    if (value == nullptr) fail(key, "is missing");
    return *value;
  }

  Fields object(const std::string& key) const {
    return Fields(at(key), where_, path_.empty() ? key : path_ + "." + key);
  }

  std::string text(const std::string& key) const { return as_text(at(key), key); }

  std::string as_text(const Json& value, const std::string& key) const {
    if (!value.is_string()) fail(key, "expected text");
    const auto& text = value.get_ref<const std::string&>();
    if (text.size() > kMaxText) fail(key, "is too long");
    if (text.find('\0') != std::string::npos) fail(key, "holds a zero byte");
    return text;
  }

  std::int64_t integer(const std::string& key, std::int64_t low, std::int64_t high) const {
    return as_integer(at(key), key, low, high);
  }

  std::int64_t as_integer(const Json& value, const std::string& key, std::int64_t low, std::int64_t high) const {
    const bool fits = value.is_number_integer() &&
                      !(value.is_number_unsigned() &&
                        value.get<std::uint64_t>() > std::uint64_t(std::numeric_limits<std::int64_t>::max()));
    const std::int64_t number = fits ? value.get<std::int64_t>() : 0;
    if (!fits || number < low || number > high) {
      fail(key, "expected a whole number from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return number;
  }

  double as_number(const Json& value, const std::string& key) const {
    if (!value.is_number()) fail(key, "expected a number");
    const double number = value.get<double>();
    if (!std::isfinite(number)) fail(key, "expected a finite number");
    return number;
  }

  const Json& array(const std::string& key, std::size_t most) const {
    const Json& value = at(key);
    if (!value.is_array()) fail(key, "expected a list");
    if (value.size() > most) fail(key, "has more than " + std::to_string(most) + " entries");
    return value;
  }

  const Json& json() const { return object_; }

 private:
  const Json& object_;
  std::string where_, path_;
};

bool is_file_name(const std::string& name) {
  if (name.empty() || name.size() > 128 || name[0] == '.') return false;
  for (const char c : name) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!plain && c != '.' && c != '_' && c != '-') return false;
  }
  return true;
}

bool is_digest(const std::string& text) {
  if (text.size() != 64) return false;
  for (const char c : text) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

void read_input(const Fields& top, const std::string& where, Manifest& manifest) {
  if (top.find("sensor") == nullptr) {
    throw Failure(where +
                  ": the engine takes normalized tensors, and this library runs sensor graphs only: make one with "
                  "m2h-deploy export CHECKPOINT -o sensor.onnx --sensor uint8 --camera-size 640x480, then "
                  "m2h-deploy build sensor.onnx -o BUNDLE");
  }
  const Fields input = top.object("input");
  manifest.input_name = input.text("name");
  manifest.width = static_cast<int>(input.integer("width", 1, kMaxSide));
  manifest.height = static_cast<int>(input.integer("height", 1, kMaxSide));
  const std::string layout = input.text("layout");
  if (layout != "NHWC" && layout != "NV12") input.fail("layout", "expected NHWC or NV12");
  if (input.text("dtype") != "uint8") input.fail("dtype", "expected uint8");
  manifest.nv12 = layout == "NV12";
  if (manifest.nv12 && (manifest.width % 2 != 0 || manifest.height % 2 != 0)) input.fail("", "NV12 has even sides");
  if (const Json* batch = input.find("batch"); batch != nullptr) {
    if (input.as_integer(*batch, "batch", 1, std::numeric_limits<std::int32_t>::max()) != 1) {
      input.fail("batch", "this library runs one frame at a time: export with --batch 1");
    }
  }
}

Type read_type(const Fields& fields, const std::string& name) {
  const std::string dtype = fields.text("dtype");
  if (name == "labels" && dtype == "uint8") return Type::kUint8;
  if (name == "depth" && dtype == "uint16") return Type::kUint16;
  if (name != "labels" && dtype == "float32") return Type::kFloat32;
  fields.fail("dtype", "'" + dtype + "' is not what a sensor graph gives for " + name);
}

void read_outputs(const Fields& top, const std::string& where, Manifest& manifest) {
  const Json& list = top.array("outputs", 4);
  if (list.empty()) top.fail("outputs", "the list is empty");
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Fields fields(list[i], where, "outputs." + std::to_string(i));
    Output output;
    output.name = fields.text("name");
    const bool known = output.name == "depth" || output.name == "labels" || output.name == "normals" ||
                       output.name == "edges";
    if (!known) fields.fail("name", "expected depth, labels, normals or edges");
    for (const Output& other : manifest.outputs) {
      if (other.name == output.name) fields.fail("name", "'" + output.name + "' is there twice");
    }
    output.type = read_type(fields, output.name);
    std::vector<std::int64_t> expected = {1, manifest.height, manifest.width};
    if (output.name == "normals") expected.push_back(3);
    const Json& shape = fields.array("shape", 4);
    if (shape.size() != expected.size()) fields.fail("shape", "has another number of sides than a sensor graph's");
    for (std::size_t side = 0; side < expected.size(); ++side) {
      if (side == 0 && shape[side].is_null()) continue;  // a dynamic batch
      fields.as_integer(shape[side], "shape", expected[side], expected[side]);
    }
    output.shape = expected;
    manifest.outputs.push_back(std::move(output));
  }
}

void read_classes(const Fields& top, Manifest& manifest) {
  const Fields classes = top.object("classes");
  for (const Json& name : classes.array("names", 255)) manifest.class_names.push_back(classes.as_text(name, "names"));
  for (const Json& color : classes.array("palette", 255)) {
    if (!color.is_array() || color.size() != 3) classes.fail("palette", "expected colors of three numbers");
    std::array<std::uint8_t, 3> rgb{};
    for (std::size_t c = 0; c < 3; ++c) {
      rgb[c] = static_cast<std::uint8_t>(classes.as_integer(color[c], "palette", 0, 255));
    }
    manifest.palette.push_back(rgb);
  }
  if (manifest.palette.size() != manifest.class_names.size()) classes.fail("palette", "expected a color for each name");
}

void read_engine(const Fields& top, Manifest& manifest) {
  const Fields engine = top.object("engine");
  manifest.engine = engine.text("kind");
  manifest.engine_version = engine.text("version");
  manifest.precision = engine.text("precision");
  manifest.engine_file = engine.text("file");
  if (engine.find("targets") != nullptr) {
    for (const Json& target : engine.array("targets", 64)) {
      manifest.targets.push_back(engine.as_text(target, "targets"));
    }
  }
  if (engine.find("options") == nullptr) return;
  const Fields options = engine.object("options");
  for (const auto& [key, value] : options.json().items()) {
    if (value.is_string()) manifest.texts[key] = options.as_text(value, key);
    if (key == "version_compatible" && !value.is_null()) {
      if (!value.is_boolean()) options.fail(key, "expected true or false");
      manifest.version_compatible = value.get<bool>();
    }
    if (key == "threads" && !value.is_null()) {
      manifest.threads = static_cast<int>(options.as_integer(value, key, 1, 1024));
    }
  }
  if (options.find("provider_options") == nullptr) return;
  const Fields provider = options.object("provider_options");
  for (const auto& [key, value] : provider.json().items()) {
    const bool number = value.is_number_integer();
    manifest.provider_options[key] = number ? value.dump() : provider.as_text(value, key.substr(0, 64));
  }
}

SelfTest read_self_test(const Fields& top, const std::string& where, const Manifest& manifest) {
  const Fields fields = top.object("self_test");
  if (fields.text("pattern") != "stripes-1") fields.fail("pattern", "is not known: use a newer library");
  SelfTest test;
  const double tolerance = fields.as_number(fields.at("tolerance"), "tolerance");
  if (!(tolerance > 0)) fields.fail("tolerance", "must be above 0");
  const Fields outputs = fields.object("outputs");
  for (const auto& [name, value] : outputs.json().items()) {
    const Output* output = nullptr;
    for (const Output& candidate : manifest.outputs) {
      if (candidate.name == name) output = &candidate;
    }
    if (output == nullptr) outputs.fail(name.substr(0, 64), "is not an output of the engine");
    const Fields entry(value, where, "self_test.outputs." + name);
    SelfTestOutput expected;
    expected.deviation = entry.as_number(entry.at("deviation"), "deviation");
    if (!(expected.deviation > 0)) entry.fail("deviation", "must be above 0");
    const Json* own = entry.find("tolerance");
    expected.tolerance = own != nullptr ? entry.as_number(*own, "tolerance") : tolerance;
    if (!(expected.tolerance > 0)) entry.fail("tolerance", "must be above 0");
    for (const Json& number : entry.array("values", 65536)) {
      expected.values.push_back(entry.as_number(number, "values"));
    }
    if (expected.values.empty() || expected.values.size() > output->elements()) {
      entry.fail("values", "expected at least one and at most as many as the output has");
    }
    test.outputs[name] = std::move(expected);
  }
  return test;
}

void read_files(const Fields& top, Manifest& manifest) {
  const Fields files = top.object("files");
  if (files.json().size() > 64) top.fail("files", "has more than 64 entries");
  for (const auto& [name, digest] : files.json().items()) {
    if (!is_file_name(name)) top.fail("files", "holds a name that is not a plain file name");
    const std::string text = files.as_text(digest, name);
    if (!is_digest(text)) files.fail(name, "expected 64 hexadecimal digits");
    manifest.files[name] = text;
  }
  if (manifest.files.count(manifest.engine_file) == 0) {
    top.fail("files", "the engine file is not among them");
  }
}

// The limits of m2h_deploy/bundle/depth_calibration.py, which float32 holds with ease.
float as_factor(const Fields& fields, const std::string& key, bool positive) {
  const Json& object = fields.json();
  const auto found = object.find(key);
  if (found == object.end()) fields.fail(key, "is missing");
  const double number = fields.as_number(*found, key);
  if (!(number >= (positive ? 1e-6 : -1e6) && number <= 1e6)) {
    fields.fail(key, positive ? "must be from 1e-6 to 1e6" : "must be from -1e6 to 1e6");
  }
  return static_cast<float>(number);
}

void read_calibration(const Fields& top, Manifest& manifest) {
  if (top.find("depth_calibration") == nullptr) return;
  const Fields fields = top.object("depth_calibration");
  // A misspelled offset must not be taken for an offset of 0.
  for (const auto& [key, value] : fields.json().items()) {
    const bool known = key == "scale" || key == "offset" || key == "source" || key == "evidence";
    if (!known) fields.fail(key.substr(0, 64), "is not a known field");
  }
  DepthCalibration calibration;
  calibration.scale = as_factor(fields, "scale", true);
  if (fields.json().contains("offset")) calibration.offset = as_factor(fields, "offset", false);
  if (fields.find("source") != nullptr) (void)fields.text("source");
  if (fields.find("evidence") != nullptr) (void)fields.object("evidence");
  manifest.calibration = calibration;
}

bool is_plain(const Json& value) {
  if (value.is_primitive()) return true;
  if (!value.is_array() || value.size() > 64) return false;
  return std::all_of(value.begin(), value.end(), [](const Json& entry) { return entry.is_primitive(); });
}

// A value for an error message. Only plain ones are written, because writing deeply nested ones needs much stack.
std::string in_words(const Json* value) {
  if (value == nullptr) return "missing";
  if (!is_plain(*value)) return value->is_array() ? "a list" : "an object";
  return value->dump(-1, ' ', true).substr(0, 100);
}

const Json* at_path(const Json& top, const std::string& path) {
  const Json* value = &top;
  for (std::size_t start = 0; start <= path.size();) {
    const std::size_t end = std::min(path.find('.', start), path.size());
    if (!value->is_object()) return nullptr;
    const auto found = value->find(path.substr(start, end - start));
    if (found == value->end()) return nullptr;
    value = &*found;
    start = end + 1;
  }
  return value;
}

// What m2h_deploy/bundle/consistency.py says about a field that was edited after the self-test was made.
std::string edited_field(const Json& content) {
  const Json* made = at_path(content, "self_test.made_with");
  if (made == nullptr || !made->is_object()) return {};
  for (const auto& [path, value] : made->items()) {
    const Json* found = at_path(content, path);
    if (is_plain(value) && found != nullptr && *found == value) continue;
    return path.substr(0, 100) + " is " + in_words(found) + " and was " + in_words(&value) +
           " when the bundle was built";
  }
  return {};
}

Json parse_json(const std::string& text, const std::string& where) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    throw Failure(where + " is not readable JSON: " + first_line(error.what()));
  }
}

Manifest read_manifest(const Json& content, const std::string& where) {
  const Fields top(content, where, "");
  const std::int64_t version = top.integer("schema_version", 1, std::numeric_limits<std::int64_t>::max());
  if (version > kSchemaVersion) {
    throw Failure(where + " has schema version " + std::to_string(version) + ", newer than " +
                  std::to_string(kSchemaVersion) + ": use a newer library");
  }
  Manifest manifest;
  manifest.variant = top.object("model").text("variant");
  read_input(top, where, manifest);
  read_outputs(top, where, manifest);
  const Json& range = top.array("depth_range", 2);
  if (range.size() != 2) top.fail("depth_range", "expected two numbers");
  manifest.min_depth = static_cast<float>(top.as_number(range[0], "depth_range"));
  manifest.max_depth = static_cast<float>(top.as_number(range[1], "depth_range"));
  read_calibration(top, manifest);
  read_classes(top, manifest);
  read_engine(top, manifest);
  if (top.find("self_test") != nullptr) manifest.self_test = read_self_test(top, where, manifest);
  read_files(top, manifest);
  return manifest;
}

}  // namespace

std::size_t bytes_of(Type type) {
  switch (type) {
    case Type::kFloat32: return 4;
    case Type::kUint16: return 2;
    case Type::kUint8: return 1;
  }
  return 0;
}

std::size_t Output::elements() const {
  std::size_t count = 1;
  for (const std::int64_t side : shape) count *= static_cast<std::size_t>(side);
  return count;
}

std::vector<std::int64_t> Manifest::input_shape() const {
  if (nv12) return {1, height / 2 * 3, width};
  return {1, height, width, 3};
}

std::size_t Manifest::input_bytes() const {
  const std::size_t pixels = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
  return nv12 ? pixels / 2 * 3 : pixels * 3;
}

std::string Manifest::text(const std::string& option, const std::string& otherwise) const {
  const auto found = texts.find(option);
  return found == texts.end() ? otherwise : found->second;
}

void DepthCalibration::apply(float* depth, std::size_t count) const {
  // A loop for each operation, so that no compiler contracts them to one rounding.
  for (std::size_t i = 0; i < count; ++i) depth[i] *= scale;
  if (offset == 0) return;
  for (std::size_t i = 0; i < count; ++i) depth[i] += offset;
  if (offset > 0) return;
  for (std::size_t i = 0; i < count; ++i) depth[i] = depth[i] < 0 ? 0 : depth[i];  // NaN stays
}

Manifest parse_manifest(const std::string& json, const std::string& where) {
  const Json content = parse_json(json, where);
  const std::string edited = content.is_object() ? edited_field(content) : "";
  try {
    Manifest manifest = read_manifest(content, where);
    manifest.edited = edited;
    return manifest;
  } catch (const Failure& failure) {
    if (edited.empty()) throw;
    throw Failure(std::string(failure.what()) + "; " + edited, failure.status);
  }
}

}  // namespace m2h::detail
