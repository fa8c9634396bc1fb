//! Server-sent events out of a stream of bytes.
//!
//! Invariants: any division of the bytes gives the same events; what is kept of an unfinished event is bounded.

/// Most bytes of one event.
const MOST: usize = 16 << 20;

/// Reads events.
#[derive(Debug, Default)]
pub struct Events {
    rest: Vec<u8>,
}

/// An event is longer than any that a server sends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is longer than {MOST} bytes")]
pub struct TooLong;

impl Events {
    /// The data of each event that these bytes complete.
    ///
    /// # Errors
    /// An event is too long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        self.rest.extend_from_slice(bytes);
        let mut data = vec![];
        let mut taken = 0;
        while let Some((event, after)) = split(&self.rest[taken..]) {
            data.extend(data_of(event));
            taken += after;
        }
        self.rest.drain(..taken);
        if self.rest.len() > MOST { Err(TooLong) } else { Ok(data) }
    }
}

/// The first event and where the next one begins: an empty line ends an event, whichever way lines end.
fn split(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let ends = [&b"\n\n"[..], b"\r\n\r\n"];
    let find = |end: &[u8]| bytes.windows(end.len()).position(|w| w == end).map(|at| (at, at + end.len()));
    let (at, after) = ends.into_iter().filter_map(find).min()?;
    Some((&bytes[..at], after))
}

/// The data lines of an event, joined; none of a comment.
fn data_of(event: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(event);
    let lines = text.lines().filter_map(|l| l.strip_prefix("data:"));
    let lines: Vec<&str> = lines.map(|l| l.strip_prefix(' ').unwrap_or(l)).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_division_gives_the_same_events() {
        let text =
            b": hello\n\ndata: {\"a\": 1}\n\ndata:b\ndata: \xc3\xa9\n\nevent: x\r\ndata: c\r\n\r\ndata: [DONE]\n\nrest";
        let want = ["{\"a\": 1}", "b\né", "c", "[DONE]"];
        for size in 1..text.len() {
            let mut events = Events::default();
            let got: Vec<String> = text.chunks(size).flat_map(|c| events.push(c).unwrap()).collect();
            assert_eq!(got, want, "in pieces of {size}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut events = Events::default();
        assert_eq!(events.push(&vec![b'x'; MOST + 1]), Err(TooLong));
    }
}
