//! Text to tokens for requests: prompts as they stand, conversations through a chat template.
//!
//! Invariants: long work runs beside the threads that serve connections; no state, so one encoder serves all requests.

use crate::{
    api::{
        ApiError,
        completion::{Prompts, TruncationSide},
    },
    conversation::Turns,
    infill,
};
use rvllm_engine::{ChatError, ChatTemplate, Conversation, Limits, Tokenizer};
use serde_json::{Map, Value};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Bytes of text up to which encoding is quicker than handing it to another thread.
const SHORT: usize = 4096;
/// Bytes of text from which encoding takes so much memory that only few are encoded at a time.
const LONG: usize = 1 << 20;
/// Bytes of long texts that are worked on at a time; others wait, and hold up nobody but themselves.
static ROOM: Semaphore = Semaphore::const_new(MOST_AT_ONCE);
const MOST_AT_ONCE: usize = 16 << 20;

/// A prompt in tokens, and the text that it was made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Absent where the request had tokens.
    pub text: Option<String>,
    /// Its tokens.
    pub token_ids: Vec<u32>,
}

/// Which texts are worth encoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fits {
    field: &'static str,
    most: Option<usize>,
}

impl Fits {
    /// Those that the model takes as they are, or all where they are cut afterwards. `field` has the text.
    pub fn of(field: &'static str, limits: &Limits, cut_to: Option<i64>) -> Fits {
        Fits { field, most: cut_to.is_none().then_some(limits.max_model_len as usize) }
    }
}

/// A model's tokenizer and chat template.
pub struct Encoder {
    tokenizer: Option<Arc<Tokenizer>>,
    template: Option<ChatTemplate>,
    tokenizer_config: Option<Vec<u8>>,
}

impl Encoder {
    /// An encoder of its parts. `tokenizer_config` is tokenizer_config.json, whose special tokens the templates of
    /// requests read.
    pub fn new(
        tokenizer: Option<Arc<Tokenizer>>,
        template: Option<ChatTemplate>,
        tokenizer_config: Option<Vec<u8>>,
    ) -> Encoder {
        Encoder { tokenizer, template, tokenizer_config }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// The artifact has none.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>, ApiError> {
        let missing = || ApiError::bad_request("the model has no tokenizer · help: give the prompt as token ids");
        self.tokenizer.as_ref().ok_or_else(missing)
    }

    /// The text of tokens, special ones included.
    ///
    /// # Errors
    /// There is no tokenizer, or it refuses the tokens.
    pub fn decode(&self, token_ids: &[u32]) -> Result<String, ApiError> {
        Ok(self.tokenizer()?.decode(token_ids, false)?)
    }

    /// A text as a prompt. One that `fits` in no way is refused for its length before it is encoded.
    ///
    /// # Errors
    /// There is no tokenizer, or it refuses the text; it is far too long.
    pub fn encode(&self, text: String, add_special_tokens: bool, fits: Fits) -> Result<Prompt, ApiError> {
        let tokenizer = self.tokenizer()?;
        if let Some(most) = fits.most
            && tokenizer.is_far_longer(&text, most)?
        {
            return Err(too_long(most, &format!("more than {}", 2 * most), " in the prompt").about(fits.field));
        }
        let token_ids = tokenizer.encode(&text, add_special_tokens)?;
        Ok(Prompt { text: Some(text), token_ids })
    }

    /// The prompts of a completion.
    ///
    /// # Errors
    /// A text cannot be encoded.
    pub fn encode_all(&self, prompts: Prompts, add_special_tokens: bool, fits: Fits) -> Result<Vec<Prompt>, ApiError> {
        let tokens = |token_ids| Prompt { text: None, token_ids };
        match prompts {
            Prompts::Text(text) => Ok(vec![self.encode(text, add_special_tokens, fits)?]),
            Prompts::Texts(texts) => texts.into_iter().map(|t| self.encode(t, add_special_tokens, fits)).collect(),
            Prompts::TokenIds(ids) => Ok(vec![tokens(ids)]),
            Prompts::TokenIdLists(lists) => Ok(lists.into_iter().map(tokens).collect()),
        }
    }

    /// Prompts that ask for what stands between them and `suffix`.
    ///
    /// # Errors
    /// The model does not fill in the middle, or a text cannot be encoded.
    pub fn encode_infill(
        &self,
        prompts: Prompts,
        suffix: &str,
        add_special_tokens: bool,
        fits: Fits,
    ) -> Result<Vec<Prompt>, ApiError> {
        let before = self.encode(String::new(), add_special_tokens, fits)?.token_ids;
        let mut all = self.encode_all(prompts, false, fits)?;
        for prompt in &mut all {
            let prefix = std::mem::take(&mut prompt.token_ids);
            prompt.token_ids = infill::fill(self.tokenizer()?, before.clone(), prefix, suffix)?;
        }
        Ok(all)
    }

    /// A conversation as a prompt.
    ///
    /// # Errors
    /// There is no template, or it refuses the conversation.
    pub fn encode_turns(&self, turns: &Turns, fits: Fits) -> Result<Prompt, ApiError> {
        let own = turns.template.as_deref().map(|text| self.template_of(text)).transpose()?;
        let template = own.as_ref().or(self.template.as_ref()).ok_or(ChatError::NoTemplate)?;
        let rendered = template.render(&Conversation {
            messages: &turns.messages,
            add_generation_prompt: turns.add_generation_prompt,
            tools: Some(turns.tools.as_slice()).filter(|t| !t.is_empty()),
            variables: Some(&turns.variables),
        })?;
        let text = if turns.continue_final_message { turns.cut_after_last(rendered)? } else { rendered };
        self.encode(text, turns.add_special_tokens, fits)
    }

    /// tokenizer_config.json, with the chat template that is used.
    pub fn info(&self) -> Value {
        let config = self.tokenizer_config.as_deref().map(serde_json::from_slice);
        let mut info =
            config.and_then(Result::ok).filter(Value::is_object).unwrap_or_else(|| Value::Object(Map::new()));
        if let Some(template) = &self.template {
            info["chat_template"] = template.source().into();
        }
        info
    }

    fn template_of(&self, text: &str) -> Result<ChatTemplate, ApiError> {
        ChatTemplate::new(Some(text), self.tokenizer_config.as_deref())
            .map_err(|e| ApiError::field("chat_template", e.to_string()))
    }
}

/// Runs work on about this many bytes where it holds up nobody.
///
/// # Errors
/// The work fails, or panics.
pub async fn beside<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= SHORT {
        return work();
    }
    let room = u32::try_from(bytes.min(MOST_AT_ONCE)).unwrap_or(u32::MAX);
    let _held = match bytes < LONG {
        true => None,
        false => ROOM.acquire_many(room).await.ok(),
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the prompt could not be turned into tokens")))
}

/// Keeps as many tokens of a prompt as `truncate_prompt_tokens` says, of the end that stays. A value out of range is
/// left for the engine to refuse.
pub fn truncate(prompt: &mut Vec<u32>, keep: Option<i64>, side: TruncationSide, limits: &Limits) {
    let room = limits.max_model_len.saturating_sub(1) as usize;
    let keep = match keep {
        Some(-1) => room,
        Some(keep) if keep > 0 => usize::try_from(keep).map_or(room, |k| k.min(room)),
        _ => return,
    };
    match side {
        TruncationSide::Left => drop(prompt.drain(..prompt.len().saturating_sub(keep))),
        TruncationSide::Right => prompt.truncate(keep),
    }
}

/// The tokens of an answer that a request asks for, and the field that says so.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The field.
    pub field: &'static str,
    /// None where it is not given.
    pub tokens: Option<u32>,
}

/// Refuses a request that can never fit, in vLLM's words.
///
/// # Errors
/// The prompt and the answer asked for are longer than the model takes.
pub fn check_length(prompt: &[u32], asked: Asked, limits: &Limits) -> Result<(), ApiError> {
    let (most, tokens, answer) = (limits.max_model_len as usize, prompt.len(), asked.tokens.unwrap_or(1).max(1));
    if tokens + answer as usize <= most {
        return Ok(());
    }
    let requested = (tokens + answer as usize).to_string();
    let parts = format!(" ({tokens} in the prompt, {answer} in the completion)");
    Err(too_long(most, &requested, &parts).about(asked.field))
}

fn too_long(most: usize, requested: &str, parts: &str) -> ApiError {
    ApiError::bad_request(format!(
        "This model's maximum context length is {most} tokens. However, you requested {requested} tokens{parts}. Please \
         reduce the length of the prompt or of the completion."
    ))
}
