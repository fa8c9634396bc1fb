//! `quantization_config` of a config.json: which layout a checkpoint's matrices have.
//!
//! Invariants: a method, or a value that would compute something else, is refused by name with what is supported; keys that
//! only say how the values were chosen are passed over. Which modules are quantised is told by their tensors, so lists of
//! those that are not (`modules_to_not_convert`, `ignore`) need no reading.

use super::{LARGEST_GROUP, Stored, group_given};
use crate::plan::DType;
use serde_json::{Map, Value};

/// Methods that are read.
const METHODS: &str = "gptq, awq, compressed-tensors, fp8";
/// Largest group of columns.
const MAX_GROUP: u64 = 1 << 20;

/// How a checkpoint's matrices are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Config {
    /// `qweight` packed along K, `qzeros` along N.
    Gptq {
        /// Of a value: 4 or 8.
        bits: u32,
        /// Columns that share a scale; all where absent.
        group: Option<u64>,
        /// What is added to stored zeros.
        zero_offset: u8,
    },
    /// `qweight` and `qzeros` packed along N, of 4 bits, interleaved.
    Awq {
        /// Columns that share a scale; all where absent.
        group: Option<u64>,
    },
    /// compressed-tensors' `pack-quantized`: `weight_packed` along K.
    Packed {
        /// Of a value: 4 or 8.
        bits: u32,
        /// Columns that share a scale; all where absent.
        group: Option<u64>,
        /// Whether there are no zeros.
        symmetric: bool,
    },
    /// compressed-tensors' `int-quantized`: i8 with a scale a row.
    Int8,
    /// `fp8`, and compressed-tensors' `float-quantized`: e4m3 with a scale for each block of rows and columns; a scale a row,
    /// or one for all, where absent.
    E4m3 {
        /// Rows and columns that share a scale.
        block: Option<[u64; 2]>,
    },
}

/// The keys of an object, with what stands for it in messages.
struct Keys<'a> {
    place: String,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn new(place: impl Into<String>, value: &'a Value) -> Result<Keys<'a>, String> {
        let place = place.into();
        let map = value.as_object().ok_or_else(|| format!("{place} = {} is no object", short(value)))?;
        Ok(Keys { place, map })
    }

    /// A value; null is none.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn refused(&self, key: &str, supported: &str) -> String {
        match self.get(key) {
            None => format!("{}.{key} is missing; supported: {supported}", self.place),
            Some(value) => format!("{}.{key} = {} is not supported; supported: {supported}", self.place, short(value)),
        }
    }

    /// Refuses any value but these; none is fine.
    fn only(&self, key: &str, supported: &[Value]) -> Result<(), String> {
        match self.get(key) {
            Some(value) if !supported.contains(value) => {
                let all: Vec<String> = supported.iter().map(Value::to_string).collect();
                Err(self.refused(key, &all.join(", ")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses anything that is there and not empty.
    fn none(&self, key: &str) -> Result<(), String> {
        match self.get(key) {
            Some(Value::Object(map)) if map.is_empty() => Ok(()),
            Some(_) => Err(self.refused(key, "none")),
            None => Ok(()),
        }
    }

    /// The first of these keys that is there.
    fn either(&self, keys: [&'static str; 2]) -> &'static str {
        if self.get(keys[1]).is_some() { keys[1] } else { keys[0] }
    }

    fn bits(&self, key: &str, supported: &[u32]) -> Result<u32, String> {
        let all: Vec<String> = supported.iter().map(u32::to_string).collect();
        let found = self.get(key).and_then(Value::as_u64);
        let known = supported.iter().find(|bits| Some(u64::from(**bits)) == found);
        known.copied().ok_or_else(|| self.refused(key, &all.join(", ")))
    }

    /// Rows and columns of a block; none where absent.
    fn block(&self, key: &str) -> Result<Option<[u64; 2]>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let sizes: Vec<u64> = value.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        match sizes[..] {
            [rows, columns] if [rows, columns].iter().all(|n| (1..=MAX_GROUP).contains(n)) => Ok(Some([rows, columns])),
            _ => Err(self.refused(key, "a number of rows and one of columns")),
        }
    }

    /// Columns of a group: -1, and none, is all of them.
    fn group(&self, key: &str) -> Result<Option<u64>, String> {
        match self.get(key).map(|v| (v.as_i64(), v)) {
            None | Some((Some(-1), _)) => Ok(None),
            Some((Some(n), _)) if (1..=MAX_GROUP as i64).contains(&n) => Ok(Some(n as u64)),
            Some(_) => Err(self.refused(key, "-1, or a number of columns")),
        }
    }
}

/// A value as messages show it.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { text.chars().take(80).collect::<String>() + "…" }
}

impl Config {
    /// How it stores a matrix of so many columns whose tensors are not at hand; `None` where only they tell, or where kernels
    /// multiply with its numbers.
    pub fn stored(self, columns: u64) -> Option<Stored> {
        let Config::E4m3 { block } = self else { return None };
        let group = match block {
            Some([_, group]) if group < columns => {
                Some(group_given(group, columns).filter(|n| *n == LARGEST_GROUP)? as u32)
            }
            _ => None,
        };
        Some(Stored { values: DType::F8e4m3, group, scales: DType::F32, zeros: false })
    }

    /// What a config.json says; `None` where its checkpoint is not quantised.
    ///
    /// # Errors
    /// A method or a value that is not supported, by name, with what is.
    pub fn of(config: &Value) -> Result<Option<Config>, String> {
        let found = ["quantization_config", "compression_config"].into_iter().find_map(|key| {
            let value = config.get(key).filter(|v| !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty()))?;
            Some((key, value))
        });
        let Some((key, value)) = found else { return Ok(None) };
        let keys = Keys::new(key, value)?;
        match keys.get("quant_method").and_then(Value::as_str) {
            Some("gptq") => gptq(&keys),
            Some("awq") => awq(&keys),
            Some("compressed-tensors") => compressed(&keys),
            Some("fp8") => fp8(&keys),
            _ => Err(keys.refused("quant_method", METHODS)),
        }
        .map(Some)
    }
}

fn gptq(keys: &Keys<'_>) -> Result<Config, String> {
    keys.only("is_marlin_format", &[false.into()])?;
    keys.none("dynamic")?;
    let zero_offset = match keys.get("checkpoint_format").map(Value::as_str) {
        None | Some(Some("gptq")) => 1,
        Some(Some("gptq_v2")) => 0,
        Some(_) => return Err(keys.refused("checkpoint_format", "gptq, gptq_v2")),
    };
    Ok(Config::Gptq { bits: keys.bits("bits", &[4, 8])?, group: keys.group("group_size")?, zero_offset })
}

fn awq(keys: &Keys<'_>) -> Result<Config, String> {
    keys.bits(keys.either(["bits", "w_bit"]), &[4])?;
    keys.only("zero_point", &[true.into()])?;
    let version = keys.get("version").map(|v| v.as_str().map(str::to_lowercase));
    if version.is_some_and(|v| v.as_deref() != Some("gemm")) {
        return Err(keys.refused("version", "gemm"));
    }
    Ok(Config::Awq { group: keys.group(keys.either(["group_size", "q_group_size"]))? })
}

/// How activations are quantised is left to the kernels: never more coarsely than a token at a time.
fn fp8(keys: &Keys<'_>) -> Result<Config, String> {
    keys.only("fmt", &["e4m3".into()])?;
    keys.only("activation_scheme", &["dynamic".into(), "static".into()])?;
    Ok(Config::E4m3 { block: keys.block("weight_block_size")? })
}

fn compressed(keys: &Keys<'_>) -> Result<Config, String> {
    keys.none("kv_cache_scheme")?;
    if let Some(sparsity) = keys.get("sparsity_config").filter(|v| v.as_object().is_none_or(|o| !o.is_empty())) {
        Keys::new(format!("{}.sparsity_config", keys.place), sparsity)?.only("format", &["dense".into()])?;
    }
    let groups = keys.get("config_groups").and_then(Value::as_object);
    let [(name, scheme)] = groups.map(|g| g.iter().collect::<Vec<_>>()).unwrap_or_default()[..] else {
        return Err(keys.refused("config_groups", "one group"));
    };
    let scheme = Keys::new(format!("{}.config_groups.{name}", keys.place), scheme)?;
    scheme.only("targets", &[serde_json::json!(["Linear"])])?;
    scheme.none("output_activations")?;
    let format = if scheme.get("format").is_some() { &scheme } else { keys };
    let Some(weights) = scheme.get("weights") else { return Err(scheme.refused("weights", "a scheme")) };
    let weights = Keys::new(format!("{}.weights", scheme.place), weights)?;
    weights.only("dynamic", &[false.into()])?;
    let found = format.get("format").and_then(Value::as_str);
    weights.only("type", &[if found == Some("float-quantized") { "float" } else { "int" }.into()])?;
    match found {
        Some("pack-quantized") => activations(&scheme).and_then(|()| packed(&weights)),
        Some("int-quantized") => activations(&scheme).and_then(|()| int8(&weights, &scheme)),
        Some("float-quantized") => float(&weights, &scheme),
        _ => Err(format.refused("format", "pack-quantized, int-quantized, float-quantized")),
    }
}

/// Activations that are quantised are so as kernels quantise them here: to i8, token by token.
fn activations(scheme: &Keys<'_>) -> Result<(), String> {
    let Some(activations) = scheme.get("input_activations") else { return Ok(()) };
    let keys = Keys::new(format!("{}.input_activations", scheme.place), activations)?;
    keys.bits("num_bits", &[8])?;
    keys.only("type", &["int".into()])?;
    keys.only("symmetric", &[true.into()])?;
    for (key, value) in [("dynamic", Value::Bool(true)), ("strategy", "token".into())] {
        if keys.get(key) != Some(&value) {
            return Err(keys.refused(key, &value.to_string()));
        }
    }
    Ok(())
}

fn packed(weights: &Keys<'_>) -> Result<Config, String> {
    weights.only("strategy", &["group".into(), "channel".into(), "tensor".into()])?;
    let group = match weights.get("strategy").and_then(Value::as_str) {
        Some("channel" | "tensor") => None,
        _ => weights.group("group_size")?,
    };
    let symmetric = weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
    Ok(Config::Packed { bits: weights.bits("num_bits", &[4, 8])?, group, symmetric })
}

fn int8(weights: &Keys<'_>, scheme: &Keys<'_>) -> Result<Config, String> {
    weights.bits("num_bits", &[8])?;
    weights.only("symmetric", &[true.into()])?;
    weights.only("strategy", &["channel".into(), "tensor".into()])?;
    match scheme.get("input_activations") {
        Some(_) => Ok(Config::Int8),
        None => Err(scheme.refused("input_activations", "8 bits, dynamic, a token at a time")),
    }
}

fn float(weights: &Keys<'_>, scheme: &Keys<'_>) -> Result<Config, String> {
    weights.bits("num_bits", &[8])?;
    weights.only("symmetric", &[true.into()])?;
    if let Some(activations) = scheme.get("input_activations") {
        let keys = Keys::new(format!("{}.input_activations", scheme.place), activations)?;
        keys.bits("num_bits", &[8])?;
        keys.only("type", &["float".into()])?;
    }
    match weights.get("strategy").and_then(Value::as_str) {
        Some("channel" | "tensor") => Ok(Config::E4m3 { block: None }),
        Some("block") if weights.get("block_structure").is_some() => {
            Ok(Config::E4m3 { block: weights.block("block_structure")? })
        }
        _ => Err(weights.refused("strategy", "channel, tensor, block with a block_structure")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(config: Value) -> Result<Option<Config>, String> {
        Config::of(&json!({ "quantization_config": config }))
    }

    fn w8a8() -> Value {
        let activations =
            json!({"num_bits": 8, "type": "int", "symmetric": true, "dynamic": true, "strategy": "token"});
        let weights = json!({"num_bits": 8, "type": "int", "symmetric": true, "dynamic": false, "strategy": "channel"});
        json!({
            "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}},
        })
    }

    #[test]
    fn each_method_is_read() {
        let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true});
        assert_eq!(of(gptq), Ok(Some(Config::Gptq { bits: 4, group: Some(128), zero_offset: 1 })));
        let v2 = json!({"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"});
        assert_eq!(of(v2), Ok(Some(Config::Gptq { bits: 8, group: None, zero_offset: 0 })));
        let awq = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": true});
        assert_eq!(of(awq), Ok(Some(Config::Awq { group: Some(64) })));
        assert_eq!(of(w8a8()), Ok(Some(Config::Int8)));
        let mut packed = w8a8();
        packed["format"] = "pack-quantized".into();
        let group = &mut packed["config_groups"]["group_0"];
        group["input_activations"] = Value::Null;
        group["weights"] =
            json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32});
        assert_eq!(of(packed), Ok(Some(Config::Packed { bits: 4, group: Some(32), symmetric: false })));
        let fp8 = json!({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 64]});
        assert_eq!(of(fp8), Ok(Some(Config::E4m3 { block: Some([128, 64]) })));
        assert_eq!(of(json!({"quant_method": "fp8"})), Ok(Some(Config::E4m3 { block: None })));
        let mut float = w8a8();
        float["format"] = "float-quantized".into();
        let group = &mut float["config_groups"]["group_0"];
        group["weights"]["type"] = "float".into();
        group["input_activations"]["type"] = "float".into();
        assert_eq!(of(float.clone()), Ok(Some(Config::E4m3 { block: None })));
        let weights = &mut float["config_groups"]["group_0"]["weights"];
        (weights["strategy"], weights["block_structure"]) = ("block".into(), json!([64, 32]));
        assert_eq!(of(float), Ok(Some(Config::E4m3 { block: Some([64, 32]) })));
        assert_eq!(of(json!({})), Ok(None));
        assert_eq!(Config::of(&json!({"quantization_config": null})), Ok(None));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = |config: Value| of(config).unwrap_err();
        assert_eq!(
            error(json!({"quant_method": "exl2"})),
            "quantization_config.quant_method = \"exl2\" is not supported; supported: gptq, awq, compressed-tensors, fp8"
        );
        assert_eq!(
            error(json!({"bits": 4})),
            "quantization_config.quant_method is missing; supported: gptq, awq, compressed-tensors, fp8"
        );
        assert_eq!(error(json!("gptq")), "quantization_config = \"gptq\" is no object");
        let gptq = |key: &str, value: Value| {
            let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
            config[key] = value;
            error(config)
        };
        assert_eq!(gptq("bits", json!(3)), "quantization_config.bits = 3 is not supported; supported: 4, 8");
        assert!(gptq("group_size", json!(0)).contains("group_size = 0"));
        assert!(gptq("checkpoint_format", json!("marlin")).contains("supported: gptq, gptq_v2"));
        assert!(gptq("dynamic", json!({"-:lm_head": {}})).contains("supported: none"));
        assert!(error(json!({"quant_method": "awq", "bits": 4, "version": "gemv"})).contains("supported: gemm"));
        let changed = |pointer: &str, value: Value| {
            let mut config = w8a8();
            *config.pointer_mut(pointer).unwrap() = value;
            error(config)
        };
        assert!(changed("/format", json!("marlin-24")).contains("pack-quantized, int-quantized, float-quantized"));
        assert!(changed("/format", json!("float-quantized")).contains("weights.type = \"int\" is not supported"));
        assert!(error(json!({"quant_method": "fp8", "fmt": "e5m2"})).contains("supported: \"e4m3\""));
        let blocks = |size: Value| error(json!({"quant_method": "fp8", "weight_block_size": size}));
        assert!(blocks(json!([128])).contains("weight_block_size = [128] is not supported"));
        assert!(blocks(json!([0, 128])).contains("supported: a number of rows and one of columns"));
        let group = "/config_groups/group_0";
        assert!(changed(&format!("{group}/input_activations/dynamic"), json!(false)).contains("supported: true"));
        assert!(changed(&format!("{group}/targets"), json!(["re:.*q_proj"])).contains("supported: [\"Linear\"]"));
        assert!(changed(&format!("{group}/weights/symmetric"), json!(false)).contains("weights.symmetric = false"));
        assert!(changed("/config_groups", json!({})).contains("supported: one group"));
    }

    #[test]
    fn only_blocks_of_128_columns_that_divide_them_are_multiplied_as_they_are() {
        let group = |block: [u64; 2], columns| Config::E4m3 { block: Some(block) }.stored(columns).map(|s| s.group);
        assert_eq!(group([128, 128], 1024), Some(Some(128)));
        assert_eq!(group([128, 256], 1024), Some(Some(128)));
        assert_eq!(group([128, 128], 1000), None);
        assert_eq!(group([64, 64], 1024), None);
        assert_eq!(group([128, 128], 128), Some(None));
        assert_eq!(Config::E4m3 { block: None }.stored(1000).map(|s| s.group), Some(None));
    }
}
