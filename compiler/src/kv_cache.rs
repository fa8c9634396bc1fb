//! Which element type the KV cache has.
//!
//! Invariant: what attention computes with holds every number of the cache exactly, so that reading it rounds nothing.

use crate::{
    error::{Error, Result},
    options::KvCacheChoice,
};
use rvllm_ir::DType;

/// The cache's element type for a model that computes in `dtype`; `None` where it is that.
pub(crate) fn stored(choice: KvCacheChoice, dtype: DType) -> Result<Option<DType>> {
    let Some(stored) = asked(choice).filter(|stored| *stored != dtype) else { return Ok(None) };
    match refused(stored, dtype) {
        None => Ok(Some(stored)),
        Some(help) => Err(Error::Options(format!(
            "--kv-cache-dtype asks for a cache in {stored}, but the model computes in {dtype}, {help}"
        ))),
    }
}

fn asked(choice: KvCacheChoice) -> Option<DType> {
    match choice {
        KvCacheChoice::Auto => None,
        KvCacheChoice::Bf16 => Some(DType::Bf16),
        KvCacheChoice::F16 => Some(DType::F16),
        KvCacheChoice::F32 => Some(DType::F32),
        KvCacheChoice::Fp8 => Some(DType::F8e4m3),
        KvCacheChoice::Int8 => Some(DType::I8),
    }
}

/// Why such a cache makes no sense, and what to do.
fn refused(stored: DType, dtype: DType) -> Option<&'static str> {
    match (stored, dtype) {
        (DType::I8 | DType::F8e4m3, _) | (DType::F16 | DType::Bf16, DType::F32) => None,
        (DType::F32, _) => {
            Some("so it would keep no more in twice the bytes · help: --kv-cache-dtype auto, or --dtype f32")
        }
        _ => Some("whose range it lacks · help: --kv-cache-dtype auto, fp8 or int8, or --dtype f32"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(choice: KvCacheChoice, dtype: DType) -> String {
        stored(choice, dtype).unwrap_err().to_string()
    }

    #[test]
    fn narrower_types_are_taken_and_others_refused() {
        let stored = |choice, dtype| stored(choice, dtype).unwrap();
        assert_eq!(stored(KvCacheChoice::Auto, DType::Bf16), None);
        assert_eq!(stored(KvCacheChoice::Bf16, DType::Bf16), None);
        assert_eq!(stored(KvCacheChoice::Bf16, DType::F32), Some(DType::Bf16));
        assert_eq!(stored(KvCacheChoice::Fp8, DType::Bf16), Some(DType::F8e4m3));
        assert_eq!(stored(KvCacheChoice::Int8, DType::F32), Some(DType::I8));
        assert_eq!(
            message(KvCacheChoice::F32, DType::Bf16),
            "--kv-cache-dtype asks for a cache in f32, but the model computes in bf16, so it would keep no more in twice the \
             bytes · help: --kv-cache-dtype auto, or --dtype f32"
        );
        assert!(message(KvCacheChoice::F16, DType::Bf16).contains("whose range it lacks"));
    }
}
