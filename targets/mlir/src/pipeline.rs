//! MLIR text through passes to LLVM IR, through LLVM's O3 to object code; all in process.
//!
//! Invariants:
//! - a [`Session`] and everything made from it stay on one thread;
//! - what C hands over is freed by the guard that received it.

use crate::{Error, Part, nvidia::assemble};
use llvm_sys::{
    LLVMDiagnosticSeverity,
    core::*,
    error::{LLVMDisposeErrorMessage, LLVMGetErrorMessage},
    prelude::*,
    target::*,
    target_machine::*,
    transforms::pass_builder::*,
};
use melior::{
    Context,
    dialect::DialectRegistry,
    ir::Module,
    pass::PassManager,
    utility::{parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes},
};
use rvllm_ir::tile::Kernel;
use rvllm_targets::Target;
use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char, c_void},
    ptr,
    rc::Rc,
    sync::Once,
};

/// The passes from what [`crate::cpu`] writes to the LLVM dialect. AMX values in loops need the single `convert-to-llvm`.
const CPU_PASSES: &str =
    "builtin.module(convert-scf-to-cf,convert-vector-to-llvm,convert-to-llvm,reconcile-unrealized-casts)";

/// The passes from what [`crate::nvidia`] writes: operations without an intrinsic become PTX text first.
const NVIDIA_PASSES: &str = "builtin.module(convert-scf-to-cf,convert-nvvm-to-llvm,convert-vector-to-llvm,convert-to-llvm,\
                             reconcile-unrealized-casts)";

/// An MLIR context with every dialect at hand, and the diagnostics it gave.
pub(crate) struct Session {
    context: Context,
    diagnostics: Rc<RefCell<Vec<String>>>,
}

/// The MLIR of a kernel after the passes: the LLVM dialect.
pub fn after_passes(kernel: &Kernel, target: &Target) -> Result<String, Error> {
    let session = Session::new();
    let module = session.lowered(kernel, target, &crate::lower(kernel, target)?.text)?;
    Ok(module.as_operation().to_string())
}

/// LLVM IR of a kernel after O3.
pub fn llvm_ir(kernel: &Kernel, target: &Target) -> Result<String, Error> {
    let lowered = crate::lower(kernel, target)?;
    Session::new().optimized(kernel, target, &lowered.text, |_, module| {
        // SAFETY: the module is valid; the string is ours until disposed of, after the copy
        unsafe {
            let text = LLVMPrintModuleToString(module.0);
            let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
            LLVMDisposeMessage(text);
            Ok(copy)
        }
    })
}

/// Assembly of a kernel.
pub fn asm(kernel: &Kernel, target: &Target) -> Result<String, Error> {
    let session = Session::new();
    let lowered = crate::lower(kernel, target)?;
    let text = session.emit(kernel, target, &lowered.text, LLVMCodeGenFileType::LLVMAssemblyFile)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

impl Session {
    pub(crate) fn new() -> Session {
        register_all_passes();
        let registry = DialectRegistry::new();
        register_all_dialects(&registry);
        let context = Context::new_with_registry(&registry, false);
        register_all_llvm_translations(&context);
        let diagnostics = Rc::new(RefCell::new(vec![]));
        let sink = Rc::clone(&diagnostics);
        context.attach_diagnostic_handler(move |d| {
            sink.borrow_mut().push(format!("{}: {d}", d.location()));
            true
        });
        Session { context, diagnostics }
    }

    /// Object code, and how it is launched.
    pub(crate) fn part(&self, kernel: &Kernel, target: &Target) -> Result<Part, Error> {
        let lowered = crate::lower(kernel, target)?;
        let Some(mut launch) = lowered.launch else {
            let bytes = self.emit(kernel, target, &lowered.text, LLVMCodeGenFileType::LLVMObjectFile)?;
            return Ok(Part { bytes, launch: None });
        };
        let ptx = self.emit(kernel, target, &lowered.text, LLVMCodeGenFileType::LLVMAssemblyFile)?;
        let Some(tool) = assemble::assembler() else { return Ok(Part { bytes: ptx, launch: Some(launch) }) };
        let assembled = assemble::assemble(tool, kernel, &ptx, &target.cpu)?;
        launch.registers = Some(assembled.registers);
        launch.spill_bytes = Some(assembled.spill_bytes);
        Ok(Part { bytes: assembled.cubin, launch: Some(launch) })
    }

    fn internal(&self, kernel: &Kernel, stage: &'static str, message: &str) -> Error {
        let mut all = self.diagnostics.take();
        all.extend((!message.is_empty()).then(|| message.to_string()));
        Error::Internal { kernel: kernel.name.clone(), stage, message: all.join("; ") }
    }

    fn lowered(&self, kernel: &Kernel, target: &Target, text: &str) -> Result<Module<'_>, Error> {
        let module = Module::parse(&self.context, text);
        let mut module = module.ok_or_else(|| self.internal(kernel, "reading MLIR", ""))?;
        let passes = PassManager::new(&self.context);
        let pipeline = if target.gpu.is_some() { NVIDIA_PASSES } else { CPU_PASSES };
        parse_pass_pipeline(passes.as_operation_pass_manager(), pipeline)
            .map_err(|e| self.internal(kernel, "reading the pass pipeline", &e.to_string()))?;
        passes.run(&mut module).map_err(|_| self.internal(kernel, "lowering MLIR", ""))?;
        Ok(module)
    }

    /// Runs LLVM's O3 and hands the result to `then`.
    fn optimized<T>(
        &self,
        kernel: &Kernel,
        target: &Target,
        text: &str,
        then: impl FnOnce(&Machine, &LlvmModule) -> Result<T, String>,
    ) -> Result<T, Error> {
        let machine = Machine::new(target)?;
        let mlir = self.lowered(kernel, target, text)?;
        let context = LlvmContext::new();
        let raw = mlir.as_operation().to_raw();
        // SAFETY: both are valid; a null result means failure
        let module = unsafe { mlir_sys::mlirTranslateModuleToLLVMIR(raw, context.raw.cast()) };
        if module.is_null() {
            return Err(self.internal(kernel, "translation to LLVM IR", ""));
        }
        let module = LlvmModule(module.cast());
        machine.optimize(&module).map_err(|e| self.internal(kernel, "LLVM's O3", &e))?;
        let result = then(&machine, &module).map_err(|e| self.internal(kernel, "code generation", &e))?;
        let errors = context.errors.take();
        if errors.is_empty() { Ok(result) } else { Err(self.internal(kernel, "code generation", &errors.join("; "))) }
    }

    fn emit(&self, kernel: &Kernel, target: &Target, text: &str, kind: LLVMCodeGenFileType) -> Result<Vec<u8>, Error> {
        self.optimized(kernel, target, text, |machine, module| machine.emit(module, kind))
    }
}

/// An LLVM context and the errors it reported: by default LLVM would end the process.
struct LlvmContext {
    raw: LLVMContextRef,
    errors: Box<RefCell<Vec<String>>>,
}

impl LlvmContext {
    fn new() -> LlvmContext {
        let errors: Box<RefCell<Vec<String>>> = Box::default();
        // SAFETY: the handler's argument is boxed, so that it stays where it is as long as the context lives
        let raw = unsafe {
            let raw = LLVMContextCreate();
            let sink = std::ptr::from_ref::<RefCell<Vec<String>>>(&errors).cast_mut();
            LLVMContextSetDiagnosticHandler(raw, Some(note_error), sink.cast());
            raw
        };
        LlvmContext { raw, errors }
    }
}

/// Keeps what is an error.
extern "C" fn note_error(info: LLVMDiagnosticInfoRef, sink: *mut c_void) {
    // SAFETY: LLVM calls this with a valid diagnostic and with what `LlvmContext::new` registered
    unsafe {
        if LLVMGetDiagInfoSeverity(info) == LLVMDiagnosticSeverity::LLVMDSError {
            let text = message(LLVMGetDiagInfoDescription(info));
            (*sink.cast::<RefCell<Vec<String>>>()).borrow_mut().push(text);
        }
    }
}

impl Drop for LlvmContext {
    fn drop(&mut self) {
        // SAFETY: created by us, and no module of it is left
        unsafe { LLVMContextDispose(self.raw) }
    }
}

struct LlvmModule(LLVMModuleRef);

impl Drop for LlvmModule {
    fn drop(&mut self) {
        // SAFETY: ours alone
        unsafe { LLVMDisposeModule(self.0) }
    }
}

/// Code generator of one target.
struct Machine {
    raw: LLVMTargetMachineRef,
    triple: CString,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: ours alone
        unsafe { LLVMDisposeTargetMachine(self.raw) }
    }
}

fn c_string(s: &str) -> CString {
    CString::new(s.replace('\0', "")).unwrap_or_default()
}

/// Copies and frees a message of LLVM's.
///
/// # Safety
/// `message` is null or a string that LLVM handed over.
unsafe fn message(message: *mut c_char) -> String {
    if message.is_null() {
        return String::new();
    }
    // SAFETY: by contract
    unsafe {
        let copy = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeMessage(message);
        copy
    }
}

fn initialize_backends() {
    static ONCE: Once = Once::new();
    // SAFETY: plain registration, once
    ONCE.call_once(|| unsafe {
        LLVM_InitializeAllTargetInfos();
        LLVM_InitializeAllTargets();
        LLVM_InitializeAllTargetMCs();
        LLVM_InitializeAllAsmPrinters();
        LLVM_InitializeAllAsmParsers();
    });
}

impl Machine {
    fn new(target: &Target) -> Result<Machine, Error> {
        initialize_backends();
        let triple = c_string(&target.triple);
        let (cpu, features) = (c_string(&target.cpu), c_string(&target.llvm_features));
        let (mut backend, mut error) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: strings and out pointers outlive the calls; on failure `error` is a message for us to free
        unsafe {
            if LLVMGetTargetFromTriple(triple.as_ptr(), &mut backend, &mut error) != 0 {
                return Err(Error::NoBackend { triple: target.triple.clone(), message: message(error) });
            }
            let raw = LLVMCreateTargetMachine(
                backend,
                triple.as_ptr(),
                cpu.as_ptr(),
                features.as_ptr(),
                LLVMCodeGenOptLevel::LLVMCodeGenLevelAggressive,
                LLVMRelocMode::LLVMRelocPIC,
                LLVMCodeModel::LLVMCodeModelDefault,
            );
            Ok(Machine { raw, triple })
        }
    }

    fn optimize(&self, module: &LlvmModule) -> Result<(), String> {
        // SAFETY: module and machine are valid; options and data layout are freed after their last use
        unsafe {
            LLVMSetTarget(module.0, self.triple.as_ptr());
            let layout = LLVMCreateTargetDataLayout(self.raw);
            LLVMSetModuleDataLayout(module.0, layout);
            LLVMDisposeTargetData(layout);
            let options = LLVMCreatePassBuilderOptions();
            let error = LLVMRunPasses(module.0, c"default<O3>".as_ptr(), self.raw, options);
            LLVMDisposePassBuilderOptions(options);
            if error.is_null() {
                return Ok(());
            }
            let text = LLVMGetErrorMessage(error);
            let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
            LLVMDisposeErrorMessage(text);
            Err(copy)
        }
    }

    fn emit(&self, module: &LlvmModule, kind: LLVMCodeGenFileType) -> Result<Vec<u8>, String> {
        let (mut buffer, mut error) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: module and machine are valid; on success the buffer is ours, and copied before it is freed
        unsafe {
            if LLVMTargetMachineEmitToMemoryBuffer(self.raw, module.0, kind, &mut error, &mut buffer) != 0 {
                return Err(message(error));
            }
            let (start, size) = (LLVMGetBufferStart(buffer), LLVMGetBufferSize(buffer));
            let bytes = std::slice::from_raw_parts(start.cast::<u8>(), size).to_vec();
            LLVMDisposeMemoryBuffer(buffer);
            Ok(bytes)
        }
    }
}
