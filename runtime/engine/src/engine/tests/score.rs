//! Texts are scored position by position, whatever the chunks.

use super::*;

fn rows(engine: &mut Engine, text: &[u32]) -> Result<Vec<Vec<f32>>, EngineError> {
    let mut all: Vec<Vec<f32>> = vec![];
    let mut scoring = engine.score(text)?;
    while let Some(scored) = scoring.next_rows()? {
        assert_eq!(scored.first, all.len());
        all.extend((0..scored.rows).map(|i| scored.logits.row(i).logits.to_vec()));
    }
    Ok(all)
}

#[test]
fn every_position_has_its_row_whatever_the_chunks() {
    let text: Vec<u32> = (0..48).map(|i| (i * 7) % VOCAB).collect();
    let expected: Vec<Vec<f32>> = (0..text.len()).map(|i| logits_after(&text[..=i])).collect();
    for (tokens, logits) in [(64, 64), (5, 64), (64, 3), (1, 1)] {
        let limits = Limits { max_num_batched_tokens: tokens, max_logits: logits, num_blocks: 12, ..limits() };
        let mut engine = engine(limits);
        for _ in 0..2 {
            assert_eq!(rows(&mut engine, &text).unwrap(), expected);
            assert_eq!(engine.stats().num_free_blocks, 12);
        }
        assert_eq!(rows(&mut engine, &text[..1]).unwrap(), expected[..1]);
    }
}

#[test]
fn dropped_halfway_it_leaves_the_engine_as_it_was() {
    let mut engine = engine(Limits { max_num_batched_tokens: 4, ..limits() });
    let (text, answer) = ([5; 20], one(&[1, 2, 3], greedy()));
    let mut scoring = engine.score(&text).unwrap();
    assert!(scoring.next_rows().unwrap().is_some());
    drop(scoring);
    assert_eq!(run(&mut engine, &vec![(vec![1, 2, 3], greedy())], &[0]), [answer]);
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let mut engine = engine(Limits { num_blocks: 2, ..limits() });
    let mut refusal = |text: &[u32]| engine.score(text).err().map(|e| e.to_string()).unwrap();
    assert!(refusal(&[1; 9]).starts_with("the text has 9 tokens, but the model and its KV cache take 8 "));
    assert!(refusal(&[]).starts_with("the prompt is empty"));
    assert!(refusal(&[VOCAB]).starts_with("the prompt has token id 259"));
    let one_token = SamplingParams { max_tokens: Some(1), ..greedy() };
    engine.add_request(1, vec![1], one_token).unwrap();
    assert!(engine.score(&[1]).is_err_and(|e| e.to_string().starts_with("requests are unfinished")));
}
