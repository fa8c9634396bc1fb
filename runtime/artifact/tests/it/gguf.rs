//! GGUF files: numbers against gguf-py's, and bytes that are not what they should be.

use rvllm_artifact::{Checkpoint, Source, gguf::Gguf, plan::DType};
use std::{borrow::Cow, fs, path::Path};

fn blocks() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/blocks.gguf")).unwrap()
}

#[test]
fn numbers_are_gguf_pys() {
    let file = blocks();
    let gguf = Gguf::read("blocks.gguf", &file).unwrap();
    assert_eq!(gguf.metadata.number("epsilon"), Some(f64::from(1e-5f32)));
    for kind in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"] {
        let (stored, numbers) = (format!("{kind}.stored"), format!("{kind}.numbers"));
        let ty = gguf.tensor(&stored).unwrap();
        assert_eq!(Some(&ty), gguf.tensor(&numbers).as_ref(), "{kind}");
        let all = 0..ty.bytes().unwrap();
        let want = gguf.bytes(&file, &numbers, all.clone()).unwrap();
        let got = gguf.bytes(&file, &stored, all.clone()).unwrap();
        let value = |bytes: &[u8], i: usize| f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap());
        for i in 0..want.len() / 4 {
            assert_eq!(value(&got, i), value(&want, i), "{kind} {i}");
        }
        // Any range, within blocks and across rows.
        for (start, end) in [(0, 4), (4, 132), (1000, 3080), (all.end - 4, all.end), (8, 8)] {
            let part = gguf.bytes(&file, &stored, start..end).unwrap();
            assert_eq!(part.as_ref(), &got[start as usize..end as usize], "{kind} {start}..{end}");
        }
        assert!(gguf.bytes(&file, &stored, 0..all.end + 4).is_none(), "{kind}");
    }
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let file = blocks();
    let header = Gguf::read("x", &file).unwrap().header_bytes();
    for cut in (0..header).step_by(3).chain([file.len() - 40]) {
        let message = Gguf::read("x", &file[..cut]).unwrap_err().to_string();
        assert!(message.contains("damaged"), "{cut}: {message}");
    }
}

#[test]
fn flipped_bytes_never_panic_or_allocate_without_bound() {
    let file = blocks();
    let header = Gguf::read("x", &file).unwrap().header_bytes();
    for at in 0..header {
        for bits in [0x01, 0x80, 0xff] {
            let mut changed = file.clone();
            changed[at] ^= bits;
            if let Ok(gguf) = Gguf::read("x", &changed) {
                for name in gguf.names() {
                    let end = gguf.tensor(&name).and_then(|ty| ty.bytes()).unwrap();
                    let _ = gguf.bytes(&changed, &name, 0..end.min(4096));
                }
            }
        }
    }
}

/// A header of these keys and one tensor of this type number.
fn header(keys: &[(&str, u32, &[u8])], kind: u32) -> Vec<u8> {
    let text = |t: &str| [&(t.len() as u64).to_le_bytes()[..], t.as_bytes()].concat();
    let mut file =
        [&b"GGUF"[..], &3u32.to_le_bytes(), &1u64.to_le_bytes(), &(keys.len() as u64).to_le_bytes()].concat();
    for (key, ty, value) in keys {
        file.extend([text(key), ty.to_le_bytes().to_vec(), value.to_vec()].concat());
    }
    file.extend([text("t"), 1u32.to_le_bytes().to_vec(), 32u64.to_le_bytes().to_vec()].concat());
    file.extend([kind.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec()].concat());
    file.resize(file.len().next_multiple_of(32) + 128, 0);
    file
}

#[test]
fn what_is_wrong_is_named() {
    let message = |file: &[u8]| Gguf::read("m.gguf", file).unwrap_err().to_string();
    let list = [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    for (file, problem) in [
        (b"GGML....".to_vec(), "does not begin with GGUF"),
        (header(&[("a", 77, &[])], 0), "a value of type 77, expected 0 to 12"),
        (header(&[("a", 9, &list)], 0), "18446744073709551615 values in"),
        (header(&[("a", 0, &[1]), ("a", 0, &[1])], 0), "key a twice"),
        (header(&[("general.alignment", 4, &3u32.to_le_bytes())], 0), "an alignment of 3, expected a power of two"),
        (header(&[], 16), "IQ2_XXS"),
        (header(&[], 12), "tensor t of shape [32], which is no number of Q4_K blocks"),
    ] {
        let told = message(&file);
        assert!(told.contains(problem), "{told}");
    }
    assert!(Gguf::read("m.gguf", &header(&[], 0)).is_ok());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, header(&[], 8)).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.tensor("t").unwrap().to_string(), "[32]f32");
    assert_eq!(checkpoint.bytes("t", 4..12).unwrap().len(), 8);
    assert!(checkpoint.tensor("u").is_err());
}

/// A part of the tensor `kind`.stored; all of it.
fn part<'a>(gguf: &Gguf, file: &'a [u8], kind: &str, part: &str) -> Cow<'a, [u8]> {
    let name = format!("{kind}.stored{part}");
    gguf.bytes(file, &name, 0..gguf.tensor(&name).unwrap().bytes().unwrap()).unwrap()
}

/// The numbers of `kind` as its values, scales and zeros make them.
fn made(gguf: &Gguf, file: &[u8], kind: &str) -> Vec<f32> {
    let stored = gguf.stored(&format!("{kind}.stored")).unwrap();
    let group = stored.group.unwrap() as usize;
    let (values, middle) = (part(gguf, file, kind, ".values"), if stored.values == DType::U4 { 8.0 } else { 128.0 });
    let values: Vec<u8> = match stored.values {
        DType::U4 => values.iter().flat_map(|b| [b & 15, b >> 4]).collect(),
        _ => values.into_owned(),
    };
    let of_groups = |name: &str| -> Vec<f32> {
        part(gguf, file, kind, name).as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
    };
    let (scales, zeros) = (of_groups(".scales"), stored.zeros.then(|| of_groups(".zeros")));
    let zero = |i: usize| zeros.as_ref().map_or(middle, |zeros| zeros[i / group]);
    values.iter().enumerate().map(|(i, q)| (f32::from(*q) - zero(i)) * scales[i / group]).collect()
}

fn numbers(gguf: &Gguf, file: &[u8], kind: &str) -> Vec<f32> {
    let name = format!("{kind}.numbers");
    let bytes = gguf.bytes(file, &name, 0..gguf.tensor(&name).unwrap().bytes().unwrap()).unwrap();
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn parts_of_blocks_are_the_files_bits() {
    let file = blocks();
    let gguf = Gguf::read("blocks.gguf", &file).unwrap();
    for (kind, values) in [("Q4_0", "u4"), ("Q5_0", "u8"), ("Q8_0", "u8")] {
        let ty = |part: &str| gguf.tensor(&format!("{kind}.stored{part}")).unwrap().to_string();
        assert_eq!((ty(".values"), ty(".scales")), (format!("[3, 512]{values}"), "[3, 16]f16".to_string()));
        assert_eq!(made(&gguf, &file, kind), numbers(&gguf, &file, kind), "{kind}");
        let (name, whole) = (format!("{kind}.stored.values"), part(&gguf, &file, kind, ".values"));
        assert_eq!(gguf.bytes(&file, &name, 300..410).unwrap().as_ref(), &whole[300..410]);
        assert!(gguf.bytes(&file, &name, 0..whole.len() as u64 + 1).is_none());
        assert!(gguf.tensor(&format!("{kind}.stored.zeros")).is_none());
    }
    assert!(gguf.stored("Q4_0.numbers").is_none());
}

#[test]
fn scales_of_two_factors_and_offsets_are_rounded_once() {
    let file = blocks();
    let gguf = Gguf::read("blocks.gguf", &file).unwrap();
    for (kind, group) in [("Q4_1", 32), ("Q5_1", 32), ("Q4_K", 32), ("Q5_K", 32), ("Q6_K", 16)] {
        let (ours, theirs) = (made(&gguf, &file, kind), numbers(&gguf, &file, kind));
        assert_eq!(ours.len(), theirs.len());
        for (i, (ours, theirs)) in ours.chunks(group).zip(theirs.chunks(group)).enumerate() {
            let largest = theirs.iter().fold(0f32, |a, x| a.max(x.abs()));
            let wrong = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(wrong <= largest / 1024.0, "{kind} {i}: {wrong} of {largest}");
        }
    }
}
