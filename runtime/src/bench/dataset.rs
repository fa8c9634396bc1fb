//! What is asked: prompts and the lengths of their answers, by vLLM's names of data sets.
//!
//! Invariants: the same seed gives the same prompts; a file is read whole before the first request leaves.

use super::vocabulary::Vocabulary;
use crate::error::Failure;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::Value;
use std::{fs, path::PathBuf};

/// Bounds of ShareGPT's conversations, as vLLM sets them.
const MOST_PROMPT: usize = 1024;
const MOST_TOTAL: usize = 2048;
const LEAST: usize = 4;

/// A data set by name.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Random tokens
    Random,
    /// A file of ShareGPT's form: first turns as prompts, second turns for lengths
    Sharegpt,
    /// Few prefixes, each shared by many prompts
    #[value(name = "prefix_repetition", alias = "prefix-repetition")]
    PrefixRepetition,
    /// JSON lines with `prompt` and, where given, `output_tokens`
    Custom,
}

/// Which prompts.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Data set")]
pub struct Dataset {
    /// What is asked
    #[arg(long, value_enum, default_value = "random", value_name = "NAME")]
    pub dataset_name: Name,
    /// The file of sharegpt and custom
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<PathBuf>,
    /// Prompts
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub num_prompts: usize,
    /// Of the prompts and of the times at which they leave
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Tokens of each prompt, for data sets that choose them [default: 1024]
    #[arg(long, value_name = "N", alias = "random-input-len")]
    pub input_len: Option<usize>,
    /// Tokens of each answer [default: 128; of sharegpt, as long as the answer in the file]
    #[arg(long, value_name = "N", aliases = ["random-output-len", "sharegpt-output-len", "custom-output-len",
        "prefix-repetition-output-len"])]
    pub output_len: Option<usize>,
    /// Lengths vary by this share to either side, below 1
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub random_range_ratio: f64,
    /// Tokens that all random prompts begin with, beside their own
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub random_prefix_len: usize,
    /// Tokens of each prefix
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub prefix_repetition_prefix_len: usize,
    /// Tokens after each prefix
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub prefix_repetition_suffix_len: usize,
    /// Prefixes
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub prefix_repetition_num_prefixes: usize,
    /// Take the file's order
    #[arg(long)]
    pub disable_shuffle: bool,
    /// Ask each prompt of a file once, however few there are
    #[arg(long)]
    pub no_oversample: bool,
}

/// A prompt and the length of its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// As text.
    pub prompt: String,
    /// As tokens.
    pub token_ids: Vec<u32>,
    /// Tokens of the answer.
    pub output_len: usize,
}

impl Dataset {
    /// The samples.
    ///
    /// # Errors
    /// A flag is out of range, or the file is missing, malformed or too short.
    pub async fn samples(&self, vocabulary: &Vocabulary) -> Result<Vec<Sample>> {
        self.check()?;
        let mut random = StdRng::seed_from_u64(self.seed);
        match self.dataset_name {
            Name::Random => self.random(vocabulary, &mut random).await,
            Name::PrefixRepetition => self.prefix_repetition(vocabulary, &mut random).await,
            Name::Sharegpt => self.file(vocabulary, &mut random, sharegpt).await,
            Name::Custom => self.file(vocabulary, &mut random, custom).await,
        }
    }

    fn check(&self) -> Result<(), Failure> {
        if self.num_prompts == 0 {
            return Err(Failure::usage("--num-prompts is 0").help("ask at least one"));
        }
        if !(0.0..1.0).contains(&self.random_range_ratio) {
            let got = self.random_range_ratio;
            return Err(Failure::usage(format!("--random-range-ratio is {got}, but must be at least 0 and below 1")));
        }
        let prefixes = self.prefix_repetition_num_prefixes;
        if self.dataset_name == Name::PrefixRepetition && prefixes == 0 {
            return Err(Failure::usage("--prefix-repetition-num-prefixes is 0"));
        }
        Ok(())
    }

    async fn random(&self, vocabulary: &Vocabulary, random: &mut StdRng) -> Result<Vec<Sample>> {
        let prefix = vocabulary.random(self.random_prefix_len, random).await?;
        let mut samples = Vec::with_capacity(self.num_prompts);
        for _ in 0..self.num_prompts {
            let input = self.vary(self.input_len.unwrap_or(1024), random);
            let output_len = self.vary(self.output_len.unwrap_or(128), random);
            samples.push(join(vocabulary, &prefix, input, output_len, random).await?);
        }
        Ok(samples)
    }

    fn vary(&self, len: usize, random: &mut StdRng) -> usize {
        let spread = (len as f64 * self.random_range_ratio) as usize;
        random.random_range(len - spread..=len + spread).max(1)
    }

    async fn prefix_repetition(&self, vocabulary: &Vocabulary, random: &mut StdRng) -> Result<Vec<Sample>> {
        let mut samples = vec![];
        let prefixes = self.prefix_repetition_num_prefixes;
        let each = self.num_prompts.div_ceil(prefixes);
        for _ in 0..prefixes {
            let prefix = vocabulary.random(self.prefix_repetition_prefix_len, random).await?;
            for _ in 0..each.min(self.num_prompts - samples.len()) {
                let suffix = self.prefix_repetition_suffix_len;
                samples.push(join(vocabulary, &prefix, suffix, self.output_len.unwrap_or(128), random).await?);
            }
        }
        samples.shuffle(random);
        Ok(samples)
    }

    async fn file(
        &self,
        vocabulary: &Vocabulary,
        random: &mut StdRng,
        read: fn(&str) -> Result<Vec<Raw>>,
    ) -> Result<Vec<Sample>> {
        let missing = || Failure::usage("this data set is a file").help("name it with --dataset-path");
        let path = self.dataset_path.as_ref().ok_or_else(missing)?;
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut raws = read(&text).with_context(|| format!("{} is no such data set", path.display()))?;
        if !self.disable_shuffle {
            raws.shuffle(random);
        }
        let mut samples = vec![];
        for raw in raws {
            if samples.len() == self.num_prompts {
                break;
            }
            samples.extend(self.sample(raw, vocabulary).await?);
        }
        self.fill(samples, path)
    }

    /// The sample of a row; none where it is shorter or longer than the data set's bounds.
    async fn sample(&self, raw: Raw, vocabulary: &Vocabulary) -> Result<Option<Sample>> {
        let token_ids = vocabulary.encode(&raw.prompt).await?;
        let output_len = match (self.output_len, raw.output) {
            (Some(len), _) | (None, Length::Tokens(len)) => len,
            (None, Length::Text(text)) => vocabulary.encode(&text).await?.len(),
            (None, Length::Unknown) => 128,
        };
        let fits = !raw.bounded
            || (token_ids.len() >= LEAST
                && token_ids.len() <= MOST_PROMPT
                && output_len >= LEAST
                && token_ids.len() + output_len <= MOST_TOTAL);
        Ok(fits.then_some(Sample { prompt: raw.prompt, token_ids, output_len }))
    }

    /// As many as were asked for, from the start again where there are fewer.
    fn fill(&self, samples: Vec<Sample>, path: &std::path::Path) -> Result<Vec<Sample>> {
        if samples.is_empty() {
            return Err(Failure::usage(format!("{} has no usable prompt", path.display())).into());
        }
        let wanted = if self.no_oversample { samples.len() } else { self.num_prompts };
        Ok(samples.iter().cycle().take(wanted).cloned().collect())
    }
}

async fn join(
    vocabulary: &Vocabulary,
    prefix: &[u32],
    len: usize,
    output_len: usize,
    random: &mut StdRng,
) -> Result<Sample> {
    let own = vocabulary.random(len, random).await?;
    let drawn = [prefix, &own].concat();
    let (prompt, token_ids) = vocabulary.text_of(drawn, random).await?;
    Ok(Sample { prompt, token_ids, output_len })
}

/// A row of a file.
struct Raw {
    prompt: String,
    output: Length,
    /// Whether ShareGPT's bounds hold.
    bounded: bool,
}

/// How long an answer is.
enum Length {
    Tokens(usize),
    Text(String),
    Unknown,
}

fn sharegpt(text: &str) -> Result<Vec<Raw>> {
    let rows: Vec<Value> = serde_json::from_str(text)?;
    let turn = |row: &Value, i: usize| row["conversations"][i]["value"].as_str().map(str::to_string);
    let raw = |row: &Value| Some(Raw { prompt: turn(row, 0)?, output: Length::Text(turn(row, 1)?), bounded: true });
    Ok(rows.iter().filter_map(raw).collect())
}

fn custom(text: &str) -> Result<Vec<Raw>> {
    let row = |(i, line): (usize, &str)| -> Result<Raw> {
        let place = || format!("line {}", i + 1);
        let value: Value = serde_json::from_str(line).with_context(place)?;
        let prompt = value["prompt"].as_str().context("`prompt` is missing").with_context(place)?.to_string();
        let output = value["output_tokens"].as_u64().map_or(Length::Unknown, |n| Length::Tokens(n as usize));
        Ok(Raw { prompt, output, bounded: false })
    };
    text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).map(row).collect()
}
