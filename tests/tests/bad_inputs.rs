//! Bad inputs through the two commands as a user types them: each gets one message that says what is wrong, the right
//! exit code, no panic and no half-written file. `cargo test --test bad_inputs -- --nocapture` prints the table.

use anyhow::{Result, ensure};
use rvllm_tests::model::{command, root};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

/// A place to spoil things in: an intact checkpoint and an intact artifact of it.
struct Lab {
    dir: tempfile::TempDir,
    artifact: Vec<u8>,
}

const TINY: &str = "tests/goldens/llama-gqa";

impl Lab {
    fn new() -> Result<Lab> {
        let dir = tempfile::tempdir()?;
        let intact = dir.path().join("intact.rvllm");
        let made = command("rvllm-compile")?.arg(root().join(TINY)).arg("-o").arg(&intact).arg("--quiet").output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(Lab { artifact: fs::read(&intact)?, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, bytes)?;
        Ok(path)
    }

    /// The artifact with one change.
    fn spoiled(&self, change: impl FnOnce(&mut Vec<u8>)) -> Result<PathBuf> {
        let mut bytes = self.artifact.clone();
        change(&mut bytes);
        self.file("spoiled.rvllm", &bytes)
    }

    /// A copy of the tiny checkpoint.
    fn checkpoint(&self) -> Result<PathBuf> {
        let copy = self.path("checkpoint");
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir(&copy)?;
        for name in ["config.json", "model.safetensors"] {
            fs::copy(root().join(TINY).join(name), copy.join(name))?;
        }
        Ok(copy)
    }

    /// A copy whose config has one key set.
    fn config(&self, key: &str, value: serde_json::Value) -> Result<PathBuf> {
        let copy = self.checkpoint()?;
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(copy.join("config.json"))?)?;
        config[key] = value;
        fs::write(copy.join("config.json"), config.to_string())?;
        Ok(copy)
    }

    /// A copy whose safetensors file is changed.
    fn weights(&self, change: impl FnOnce(&mut Vec<u8>)) -> Result<PathBuf> {
        let copy = self.checkpoint()?;
        let mut bytes = fs::read(copy.join("model.safetensors"))?;
        change(&mut bytes);
        fs::write(copy.join("model.safetensors"), bytes)?;
        Ok(copy)
    }

    fn compile(&self, model: &Path, more: &[&str]) -> Result<Output> {
        let mut compile = command("rvllm-compile")?;
        Ok(compile.arg(model).arg("-o").arg(self.path("out.rvllm")).arg("--quiet").args(more).output()?)
    }

    fn generate(&self, artifact: &Path, more: &[&str]) -> Result<Output> {
        Ok(command("rvllm")?.arg("generate").arg(artifact).args(more).stdin(Stdio::null()).output()?)
    }

    /// Answers prompts of a file with the intact artifact.
    fn answer(&self, lines: &[u8], more: &[&str]) -> Result<Output> {
        let input = self.file("prompts.jsonl", lines)?.display().to_string();
        let output = self.path("answers.jsonl").display().to_string();
        let args = [&["--input", &input, "--output", &output, "--quiet"], more].concat();
        self.generate(&self.path("intact.rvllm"), &args)
    }

    /// Files that a failed command may not leave.
    fn leftovers(&self) -> Result<Vec<String>> {
        let expected = ["intact.rvllm", "spoiled.rvllm", "prompts.jsonl", "checkpoint", "elsewhere"];
        let names = fs::read_dir(self.dir.path())?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned()));
        let names: Vec<String> = names.collect::<Result<_>>()?;
        Ok(names.into_iter().filter(|n| !expected.contains(&n.as_str())).collect())
    }
}

/// Position of the first `needle`.
fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|w| w == needle).expect("the file holds what is to be spoiled")
}

/// Replaces the first `from` by `to`, of the same length.
fn replace(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len(), "sizes and offsets stay as they are");
    let at = find(bytes, from.as_bytes());
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

/// Another format version in the manifest, with the sums that a writer of that version would have given.
fn version(bytes: &mut [u8], version: &str) {
    let start = find(bytes, b"{");
    let end = start + find(&bytes[start..], b"PK");
    let text = std::str::from_utf8(&bytes[start..end]).expect("the manifest is UTF-8").trim_end_matches('\0');
    let range = start..start + text.rfind('}').expect("the manifest is an object") + 1;
    let old = crc32(&bytes[range.clone()]).to_le_bytes();
    replace(&mut bytes[range.clone()], rvllm_artifact::manifest::FORMAT, version);
    let new = crc32(&bytes[range]).to_le_bytes();
    for at in 0..bytes.len() - 4 {
        if bytes[at..at + 4] == old {
            bytes[at..at + 4].copy_from_slice(&new);
        }
    }
}

/// CRC-32 as in ZIP (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// Replaces text of a safetensors header, whose length may change.
fn edit_header(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header = String::from_utf8(bytes[8..8 + len].to_vec()).expect("a header is UTF-8");
    assert!(header.contains(from), "{from} in {header}");
    let header = header.replacen(from, to, 1);
    let mut edited = (header.len() as u64).to_le_bytes().to_vec();
    edited.extend(header.as_bytes());
    edited.extend(&bytes[8 + len..]);
    *bytes = edited;
}

/// Overwrites the first f32 of a tensor with NaN.
fn poison(bytes: &mut [u8]) {
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    bytes[8 + len..8 + len + 4].copy_from_slice(&f32::NAN.to_le_bytes());
}

/// A limit below the artifact's size and above its kernels': what a full disk looks like without one.
fn compile_on_a_full_disk(lab: &Lab) -> Result<Output> {
    let compile = command("rvllm-compile")?.get_program().to_os_string();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("trap '' XFSZ; ulimit -f 512; exec \"$0\" \"$@\"").arg(compile);
    Ok(shell.arg(root().join(TINY)).arg("-o").arg(lab.path("out.rvllm")).arg("--quiet").output()?)
}

fn interrupt_a_compile(lab: &Lab) -> Result<Output> {
    let mut compile = command("rvllm-compile")?;
    let child = compile
        .arg(root().join("models/demo"))
        .arg("-o")
        .arg(lab.path("out.rvllm"))
        .arg("--quiet")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    thread::sleep(Duration::from_millis(150));
    Command::new("kill").arg("-INT").arg(child.id().to_string()).status()?;
    Ok(child.wait_with_output()?)
}

struct Case {
    name: &'static str,
    run: fn(&Lab) -> Result<Output>,
    code: i32,
    says: &'static [&'static str],
}

const fn case(name: &'static str, code: i32, says: &'static [&'static str], run: fn(&Lab) -> Result<Output>) -> Case {
    Case { name, run, code, says }
}

const PROMPT: &str = r#"{"prompt": [1, 2, 3], "max_tokens": 2}"#;

const ARTIFACTS: &[Case] = &[
    case("no file", 2, &["missing.rvllm", "no such file"], |l| {
        l.generate(&l.path("missing.rvllm"), &["--prompt", "a"])
    }),
    case("empty artifact", 1, &["spoiled.rvllm", "0 bytes"], |l| {
        l.generate(&l.spoiled(Vec::clear)?, &["--prompt", "a"])
    }),
    case("not an artifact", 1, &["spoiled.rvllm", "expected an artifact"], |l| {
        l.generate(&l.spoiled(|b| *b = b"once upon a time".repeat(500))?, &["--prompt", "a"])
    }),
    case("truncated artifact", 1, &["spoiled.rvllm", "truncated"], |l| {
        l.generate(&l.spoiled(|b| b.truncate(b.len() - 1000))?, &["--prompt", "a"])
    }),
    case("flipped byte in the manifest", 1, &["manifest.json"], |l| {
        l.generate(&l.spoiled(|b| replace(b, "\"compiler\"", "\"compilar\""))?, &["--prompt", "a"])
    }),
    case("flipped byte in the kernels", 1, &["kernels/", "SHA-256"], |l| {
        let spoil = |b: &mut Vec<u8>| {
            let at = find(b, b"\x7fELF") + 200;
            b[at] ^= 1;
        };
        l.generate(&l.spoiled(spoil)?, &["--prompt", "a"])
    }),
    case("flipped byte in the weights", 1, &["weights/model.safetensors", "CRC-32"], |l| {
        let spoil = |b: &mut Vec<u8>| {
            let at = b.len() / 2;
            b[at] ^= 1;
        };
        Ok(command("rvllm")?.arg("verify").arg(l.spoiled(spoil)?).output()?)
    }),
    case("newer major version", 1, &["artifact format 3.0", "reads 2."], |l| {
        l.generate(&l.spoiled(|b| version(b, "3.0"))?, &["--prompt", "a"])
    }),
    case("newer minor version", 1, &["artifact format 2.9", "reads 2."], |l| {
        l.generate(&l.spoiled(|b| version(b, "2.9"))?, &["--prompt", "a"])
    }),
    case("hostile ZIP sizes", 1, &["spoiled.rvllm", "damaged"], |l| {
        let spoil = |b: &mut Vec<u8>| {
            let at = find(b, b"PK\x01\x02");
            b[at + 20..at + 28].fill(0xfe);
        };
        l.generate(&l.spoiled(spoil)?, &["--prompt", "a"])
    }),
    case("artifact of another CPU", 1, &["compiled for aarch64", "--target"], |l| {
        let other = l.path("spoiled.rvllm");
        let made = command("rvllm-compile")?
            .arg(root().join(TINY))
            .args(["--target", "aarch64", "--quiet", "-o"])
            .arg(&other)
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        l.generate(&other, &["--prompt", "a"])
    }),
    case("too little memory for the KV cache", 2, &["KV cache", "49152 bytes"], |l| {
        l.generate(&l.path("intact.rvllm"), &["--prompt", "a", "--kv-cache-memory-bytes", "1000"])
    }),
];

const CHECKPOINTS: &[Case] = &[
    case("no model", 1, &["nowhere"], |l| l.compile(Path::new("nowhere"), &[])),
    case("config that is no JSON", 1, &["config.json", "line 1"], |l| {
        let copy = l.checkpoint()?;
        fs::write(copy.join("config.json"), "{\"architectures\": [")?;
        l.compile(&copy, &[])
    }),
    case("unknown architecture", 1, &["MambaForCausalLM", "LlamaForCausalLM"], |l| {
        l.compile(&l.config("architectures", serde_json::json!(["MambaForCausalLM"]))?, &[])
    }),
    case("config key that is not understood", 1, &["attention_sinks"], |l| {
        l.compile(&l.config("attention_sinks", serde_json::json!(4))?, &[])
    }),
    case("config value that is not supported", 1, &["hidden_act", "relu", "silu"], |l| {
        l.compile(&l.config("hidden_act", serde_json::json!("relu"))?, &[])
    }),
    case("absurd size in the config", 1, &["vocab_size"], |l| {
        l.compile(&l.config("vocab_size", serde_json::json!(1u64 << 60))?, &[])
    }),
    case("missing tensor", 1, &["model.norm.weight", "missing"], |l| {
        l.compile(&l.weights(|b| edit_header(b, "\"model.norm.weight\"", "\"model.none.weight\""))?, &[])
    }),
    case("wrong shape", 1, &["lm_head.weight", "[192, 128]", "[192, 32]"], |l| {
        l.compile(&l.config("hidden_size", serde_json::json!(32))?, &[])
    }),
    case("NaN in a weight", 1, &["tensor ", "not a finite"], |l| l.compile(&l.weights(|b| poison(b))?, &[])),
    case("truncated safetensors", 1, &["model.safetensors"], |l| {
        l.compile(&l.weights(|b| b.truncate(b.len() - 100))?, &[])
    }),
    case("hostile safetensors header length", 1, &["model.safetensors"], |l| {
        l.compile(&l.weights(|b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes()))?, &[])
    }),
    case("unknown target", 1, &["z80", "znver4"], |l| l.compile(&root().join(TINY), &["--target", "z80"])),
    case("wrong --dtype", 2, &["f64"], |l| l.compile(&root().join(TINY), &["--dtype", "f64"])),
    case("--max-model-len that is zero", 1, &["max-model-len"], |l| {
        l.compile(&root().join(TINY), &["--max-model-len", "0"])
    }),
    case("directory to write to that is not there", 1, &["cannot"], |l| {
        let out = l.path("not/there.rvllm");
        Ok(command("rvllm-compile")?.arg(root().join(TINY)).arg("-o").arg(out).arg("--quiet").output()?)
    }),
    case("disk full while writing", 1, &["cannot", "large"], compile_on_a_full_disk),
    case("Ctrl-C in the middle of a compile", 130, &["interrupted"], interrupt_a_compile),
];

const REQUESTS: &[Case] = &[
    case("no prompt", 2, &["prompt"], |l| l.generate(&l.path("intact.rvllm"), &[])),
    case("text for a model without a tokenizer", 2, &["token"], |l| {
        l.generate(&l.path("intact.rvllm"), &["--prompt", "a"])
    }),
    case("prompt file that is not UTF-8", 2, &["prompts.jsonl", "UTF-8"], |l| {
        l.answer(&[PROMPT.as_bytes(), b"\n{\"prompt\": \"\xff\xfe\"}\n"].concat(), &[])
    }),
    case("line that is no JSON", 2, &["line 2"], |l| l.answer(format!("{PROMPT}\nhello\n").as_bytes(), &[])),
    case("unknown field", 2, &["line 1", "temprature"], |l| l.answer(br#"{"prompt": [1], "temprature": 0.5}"#, &[])),
    case("parameter out of range", 2, &["line 1", "top_p"], |l| l.answer(br#"{"prompt": [1], "top_p": 1.5}"#, &[])),
    case("prompt longer than the model", 2, &["line 1", "128"], |l| {
        l.answer(format!("{{\"prompt\": {:?}}}", vec![1; 500]).as_bytes(), &[])
    }),
    case("token that the model does not have", 2, &["line 1", "100000"], |l| {
        l.answer(br#"{"prompt": [1, 100000]}"#, &[])
    }),
    case("empty prompt", 2, &["line 1", "empty"], |l| l.answer(br#"{"prompt": []}"#, &[])),
    case("flag out of range", 2, &["top_p"], |l| l.answer(PROMPT.as_bytes(), &["--top-p", "7"])),
    case("unknown flag", 2, &["--frobnicate"], |l| l.answer(PROMPT.as_bytes(), &["--frobnicate"])),
    case("--resume of another input", 2, &["answers.jsonl"], |l| {
        let partial = l.path("answers.jsonl.partial");
        fs::write(&partial, "{\"what\": \"something else\"}\n")?;
        let output = l.answer(PROMPT.as_bytes(), &["--resume"])?;
        ensure!(partial.is_file(), "a partial that is not ours stays");
        fs::remove_file(partial)?;
        Ok(output)
    }),
    case("larger steps than the artifact allows", 2, &["max_num_batched_tokens", "512"], |l| {
        l.answer(PROMPT.as_bytes(), &["--max-num-batched-tokens", "1000000"])
    }),
];

fn check(lab: &Lab, case: &Case) -> Result<String> {
    let output = (case.run)(lab)?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    ensure!(!said.contains("panicked"), "a panic: {said}");
    ensure!(output.status.code() == Some(case.code), "{:?}, not {}: {said}", output.status, case.code);
    let missing: Vec<_> = case.says.iter().filter(|s| !said.contains(**s)).collect();
    ensure!(missing.is_empty(), "the message lacks {missing:?}: {said}");
    ensure!(said.starts_with("error: "), "no `error:` first: {said}");
    let left = lab.leftovers()?;
    ensure!(left.is_empty(), "it leaves {left:?}");
    Ok(said)
}

#[test]
fn bad_inputs_get_one_clear_message() -> Result<()> {
    let lab = Lab::new()?;
    let mut failures = vec![];
    for case in [ARTIFACTS, CHECKPOINTS, REQUESTS].into_iter().flatten() {
        match check(&lab, case) {
            Ok(said) => println!("{}\n    {}", case.name, said.replace('\n', "\n    ")),
            Err(e) => failures.push(format!("{}: {e:#}", case.name)),
        }
    }
    ensure!(failures.is_empty(), "{} bad inputs are not handled:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}
