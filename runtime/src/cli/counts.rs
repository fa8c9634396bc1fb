//! Numbers of tokens as vLLM's users write them: `16384`, `16k` (16,000), `16K` (16,384), `1.5M`, `auto`.

use std::str::FromStr;

/// A length that may be left to what the artifact allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length(pub Option<u32>);

/// Reads a number of tokens.
///
/// # Errors
/// It is none.
pub fn read(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no number of tokens; write 8192, 8k (8000) or 8K (8192)");
    let factor = match text.chars().last().unwrap_or_default() {
        'k' => 1e3,
        'm' => 1e6,
        'K' => 1024.0,
        'M' => 1_048_576.0,
        _ => return text.parse().ok().filter(|n| *n > 0).ok_or_else(wrong),
    };
    let number = f64::from_str(&text[..text.len() - 1]).map_err(|_| wrong())?;
    let tokens = number * factor;
    let whole = tokens.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&tokens);
    if whole { Ok(tokens as u32) } else { Err(wrong()) }
}

/// Reads a length; `auto` and -1 leave it to the artifact.
///
/// # Errors
/// It is none.
pub fn read_or_auto(text: &str) -> Result<Length, String> {
    match text {
        "auto" | "-1" => Ok(Length(None)),
        number => read(number).map(|n| Length(Some(n))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_units() {
        let read = |text| read(text).ok();
        assert_eq!(
            ["8192", "8k", "8K", "25.6k", "1M", "1m"].map(read),
            [8192, 8000, 8192, 25600, 1 << 20, 1_000_000].map(Some)
        );
        assert_eq!(["", "k", "0", "-1", "1.0001k", "8G", "9999999999", "é"].map(read), [None; 8]);
        assert_eq!(["auto", "-1"].map(read_or_auto), [const { Ok(Length(None)) }; 2]);
    }
}
