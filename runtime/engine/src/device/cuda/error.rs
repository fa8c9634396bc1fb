//! What can be wrong with a GPU, its driver, or what it is asked for. Each message names both sides and the next step.

use cudarc::driver::result::DriverError;

/// Oldest driver that takes overlapping launches in graphs: CUDA 12.4.
pub(super) const OLDEST_DRIVER: i32 = 12040;

/// Why a GPU cannot be used, or failed.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// libcuda is missing.
    #[error(
        "{needs}, but this machine has no NVIDIA driver (libcuda.so is not found) \
         · help: install it, or compile for this CPU: rvllm compile … --target native"
    )]
    NoDriver {
        /// What needs it.
        needs: String,
    },
    /// A driver from before what is needed.
    #[error("the NVIDIA driver is made for CUDA {}, expected {} or later · help: update the driver", version(*found), version(*needed))]
    OldDriver {
        /// CUDA version of the driver: 1000 × major + 10 × minor.
        found: i32,
        /// The oldest that will do.
        needed: i32,
    },
    /// The driver sees no GPU.
    #[error("the NVIDIA driver sees no GPU{} · help: check nvidia-smi and CUDA_VISIBLE_DEVICES", because(reason))]
    NoDevice {
        /// What the driver said, where it is not just that.
        reason: String,
    },
    /// A number beyond the GPUs there are.
    #[error("no GPU {ordinal}: the driver sees {count} · help: check CUDA_VISIBLE_DEVICES")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// Code of another architecture.
    #[error(
        "artifact was compiled for {compiled}, but device {ordinal} is {found} ({name}) · help: rvllm compile … --target {found}"
    )]
    WrongArchitecture {
        /// The artifact's.
        compiled: String,
        /// Which GPU.
        ordinal: u32,
        /// Its architecture.
        found: String,
        /// Its name.
        name: String,
    },
    /// Assembly text newer than the driver.
    #[error(
        "kernel {kernel} is written in a PTX version that the driver, made for CUDA {}, does not know \
         · help: update the driver, or compile where ptxas is found", version(*driver)
    )]
    NewPtx {
        /// Whose code.
        kernel: String,
        /// CUDA version of the driver.
        driver: i32,
    },
    /// Memory that there is not.
    #[error("the GPU has {free} bytes free of {total}, but {what} needs {needed}{help}")]
    OutOfMemory {
        /// What for.
        what: String,
        /// How much.
        needed: u64,
        /// Free now.
        free: u64,
        /// Of the GPU.
        total: u64,
        /// What to do, with what goes before it.
        help: &'static str,
    },
    /// A kernel that asks for more than the GPU's multiprocessors have.
    #[error(
        "kernel {kernel} takes {needed} bytes of shared memory, but {name} has {most} for a CTA · help: compile for it"
    )]
    SharedMemory {
        /// Which.
        kernel: String,
        /// What it takes.
        needed: u64,
        /// What there is.
        most: u64,
        /// The GPU.
        name: String,
    },
    /// Any other failure of a call.
    #[error("cannot {action}: {reason}")]
    Call {
        /// What was tried.
        action: String,
        /// What the driver said.
        reason: String,
    },
}

/// `12.4` of 12040.
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

/// Names what was tried where a call fails.
pub(super) trait Context<T> {
    /// `action` completes "cannot …".
    fn context(self, action: &str) -> Result<T, CudaError>;
}

impl<T> Context<T> for Result<T, DriverError> {
    fn context(self, action: &str) -> Result<T, CudaError> {
        self.map_err(|e| CudaError::Call { action: action.to_string(), reason: reason(e) })
    }
}

/// What the driver says of an error: name and sentence.
pub(super) fn reason(error: DriverError) -> String {
    let text = |s: Result<&std::ffi::CStr, DriverError>| s.map(|s| s.to_string_lossy().into_owned()).ok();
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(sentence)) => format!("{name}: {sentence}"),
        _ => format!("CUDA error {}", error.0 as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_users_know_them() {
        let message = CudaError::OldDriver { found: 11080, needed: OLDEST_DRIVER }.to_string();
        assert_eq!(
            message,
            "the NVIDIA driver is made for CUDA 11.8, expected 12.4 or later · help: update the driver"
        );
    }

    #[test]
    fn another_architecture_names_both_and_the_way_out() {
        let error = CudaError::WrongArchitecture {
            compiled: "sm_90a".into(),
            ordinal: 0,
            found: "sm_80".into(),
            name: "NVIDIA A100".into(),
        };
        let expected = "artifact was compiled for sm_90a, but device 0 is sm_80 (NVIDIA A100) \
                        · help: rvllm compile … --target sm_80";
        assert_eq!(error.to_string(), expected);
    }
}
