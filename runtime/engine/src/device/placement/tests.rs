//! The planner against bytes counted one by one, and what the system makes of it.

use super::*;
use crate::device::map::Map;
use proptest::prelude::*;
use rvllm_artifact::plan::DType;

/// A node that no machine has.
const ABSENT: Node = 1023;
const PAGE: usize = 16;
/// Asks for the policy of an address: `MPOL_F_ADDR` of `linux/mempolicy.h`.
const OF_ADDRESS: libc::c_ulong = 2;

/// Weights of these sizes and halves, laid out one after the other.
fn extents(weights: &[(usize, usize)]) -> Vec<Extent> {
    let mut at: usize = 0;
    let extent = |(bytes, halves): &(usize, usize)| {
        let start = at.next_multiple_of(4);
        at = start + bytes * halves;
        Extent { bytes: start..at, halves: *halves }
    };
    weights.iter().map(extent).collect()
}

/// Who reads each byte; bytes between weights are with those before them.
fn readers(weights: &[Extent], nodes: &[Node]) -> Vec<Node> {
    let mut readers = vec![];
    for weight in weights {
        let gap = readers.last().copied().unwrap_or(nodes[0]);
        readers.resize(weight.bytes.start, gap);
        let bytes = weight.bytes.len() / weight.halves;
        for _ in 0..weight.halves {
            for (i, node) in nodes.iter().enumerate() {
                let read = (i + 1) * bytes / nodes.len() - i * bytes / nodes.len();
                readers.extend(std::iter::repeat_n(*node, read));
            }
        }
    }
    readers
}

proptest! {
    #[test]
    fn a_page_is_where_its_middle_is_read(
        weights in proptest::collection::vec((0usize..150, 1usize..3), 0..6),
        nodes in proptest::collection::vec(0u16..3, 1..6),
    ) {
        let weights = extents(&weights);
        let (runs, readers) = (plan(&weights, &nodes, PAGE), readers(&weights, &nodes));
        let on = |page: usize| runs.iter().filter(move |run| run.bytes.contains(&(page * PAGE))).map(|run| run.node);
        let middles = readers.iter().skip(PAGE / 2).step_by(PAGE);
        match runs.first() {
            None => prop_assert!(middles.collect::<Vec<_>>().windows(2).all(|two| two[0] == two[1])),
            Some(first) => {
                middles.enumerate().for_each(|(page, node)| assert_eq!(on(page).collect::<Vec<_>>(), [*node]));
                prop_assert_eq!((first.bytes.start, runs[runs.len() - 1].bytes.end), (0, readers.len()));
            }
        }
        for two in runs.windows(2) {
            prop_assert!(two[0].bytes.end == two[1].bytes.start && two[0].node != two[1].node);
            prop_assert!(two[0].bytes.start < two[0].bytes.end && two[1].bytes.start % PAGE == 0);
        }
    }
}

#[test]
fn members_of_two_nodes_have_their_parts_of_each_weight_and_of_each_half() {
    let weights = extents(&[(4 * PAGE, 1), (2 * PAGE, 2), (PAGE / 4, 1)]);
    let (at, run) = (|pages: usize| pages * PAGE, |bytes, node| Run { bytes, node });
    let runs = vec![
        run(0..at(2), 0),
        run(at(2)..at(4), 1),
        run(at(4)..at(5), 0),
        run(at(5)..at(6), 1),
        run(at(6)..at(7), 0),
        run(at(7)..at(8) + PAGE / 4, 1),
    ];
    assert_eq!(plan(&weights, &[0, 1], PAGE), runs);
    assert_eq!(plan(&weights, &[0, 0, 1, 1], PAGE), runs);
}

#[test]
fn nothing_is_planned_on_one_node() {
    let weights = extents(&[(100, 1), (7, 2), (90, 1)]);
    for nodes in [&[][..], &[0], &[3, 3, 3]] {
        assert_eq!(plan(&weights, nodes, PAGE), []);
    }
    assert_eq!((plan(&[], &[0, 1], PAGE), plan(&extents(&[(PAGE / 2, 1)]), &[0, 1], PAGE)), (vec![], vec![]));
}

fn weight(bytes: usize, recipe: Recipe) -> Weight {
    Weight { name: String::new(), dtype: DType::U8, shape: vec![bytes as u64], recipe }
}

fn tensor() -> Recipe {
    Recipe::Tensor("x".into())
}

#[test]
fn gated_weights_have_halves() {
    let pack = || Recipe::Pack { n: 16, k: 2, of: Box::new(tensor()) };
    let merged = Recipe::Pack { n: 16, k: 2, of: Box::new(Recipe::Concat(vec![tensor(), tensor()])) };
    let halves_of = |recipe| halves(&weight(8, recipe));
    assert_eq!(halves_of(Recipe::Concat(vec![pack(), pack()])), 2);
    assert_eq!([pack(), merged, Recipe::Concat(vec![tensor(), tensor()])].map(halves_of), [1, 1, 1]);
}

/// Mode of the policy of the memory at an address.
fn policy(address: u64) -> libc::c_int {
    let mut mode = -1;
    let (no_mask, no_bits) = (std::ptr::null::<libc::c_ulong>(), 0usize);
    // SAFETY: `mode` is writable, no mask is asked for, and of the address only its policy is read.
    let failed =
        unsafe { libc::syscall(libc::SYS_get_mempolicy, &mut mode, no_mask, no_bits, address, OF_ADDRESS) != 0 };
    if failed { -1 } else { mode }
}

#[test]
fn what_the_system_refuses_is_left_and_no_byte_changes() {
    let page = page_bytes();
    let memory = || Map::new(8 * page as u64, "a test").unwrap();
    let bytes = |map: &mut Map, then: &mut dyn FnMut(&mut [u8]) -> bool| {
        then(bytemuck::cast_slice_mut(map.integers(0, 2 * page).unwrap()))
    };
    let allowed = bytes(&mut memory(), &mut |memory| prefer(memory, 0));
    let (weights, places) = ([weight(8 * page, tensor())], vec![0..8 * page; 1]);
    let mut map = memory();
    let placed = bytes(&mut map, &mut |memory| place(memory, &weights, &places, &[0, ABSENT, 0, 0]));
    assert_eq!(placed, allowed);
    if allowed {
        let modes = [0, 1, 2, 3, 4, 7].map(|i| policy(map.address() + i * page as u64));
        let (ours, left) = (libc::MPOL_PREFERRED, libc::MPOL_DEFAULT);
        assert_eq!(modes, [ours, ours, left, left, ours, ours]);
    }
    assert!(!bytes(&mut memory(), &mut |memory| place(memory, &weights, &places, &[ABSENT, ABSENT - 1])));
    assert!(!bytes(&mut memory(), &mut |memory| place(memory, &weights, &places, &[0, 0])));
    assert!(bytes(&mut map, &mut |memory| memory.iter().all(|byte| *byte == 0)));
}
