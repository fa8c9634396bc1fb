//! Memory nodes: which CPUs each has, and on which node each thread of the team runs.
//!
//! Invariant: where the system says nothing of nodes, there are none, and nothing depends on them.

use super::affinity;
use std::{fs, ops::RangeInclusive, path::Path};

/// Number of a memory node.
pub type Node = u16;

/// Where the system tells of its nodes.
const SYSTEM: &str = "/sys/devices/system/node";

/// How memory nodes are used: `--numa`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Numa {
    /// Weights lie on the nodes of the threads that read them.
    #[default]
    Auto,
    /// Weights lie where the system puts them.
    Off,
    /// As [`Numa::Auto`], with the node of each thread as the caller knows it.
    Nodes(Vec<Node>),
}

impl Numa {
    /// Node of each of `threads` threads; none where all are on one, or where it is not known.
    pub(crate) fn of_threads(&self, threads: usize) -> Vec<Node> {
        let nodes = match self {
            Numa::Off => None,
            Numa::Nodes(nodes) => Some(nodes.clone()),
            Numa::Auto => of_system(threads),
        };
        let several = |nodes: &Vec<Node>| nodes.len() == threads && nodes.iter().any(|node| *node != nodes[0]);
        nodes.filter(several).unwrap_or_default()
    }
}

fn of_system(threads: usize) -> Option<Vec<Node>> {
    let topology = Topology::read(Path::new(SYSTEM));
    if topology.nodes.len() < 2 {
        return None;
    }
    topology.of_threads(&affinity::physical_cores(), threads)
}

/// The nodes that have CPUs.
#[derive(Debug, PartialEq)]
struct Topology {
    nodes: Vec<(Node, Vec<RangeInclusive<usize>>)>,
}

impl Topology {
    /// What `root` says in `node0/cpulist`, `node1/cpulist` and so on; what cannot be read is left out.
    fn read(root: &Path) -> Topology {
        let node = |entry: fs::DirEntry| {
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let cpus = parse_cpus(&fs::read_to_string(entry.path().join("cpulist")).ok()?)?;
            (!cpus.is_empty()).then_some((number, cpus))
        };
        let mut nodes: Vec<_> = fs::read_dir(root).into_iter().flatten().flatten().filter_map(node).collect();
        nodes.sort_unstable_by_key(|(number, _)| *number);
        Topology { nodes }
    }

    fn of_cpu(&self, cpu: usize) -> Option<Node> {
        self.nodes.iter().find(|(_, cpus)| cpus.iter().any(|range| range.contains(&cpu))).map(|(node, _)| *node)
    }

    /// Node of each thread, of which thread `i` runs on core `i`: threads that outnumber cores are bound to none. The
    /// first is the caller, who is not bound either: the others leave it that core.
    fn of_threads(&self, cores: &[Vec<usize>], threads: usize) -> Option<Vec<Node>> {
        let bound = cores.get(..threads)?;
        bound.iter().map(|core| self.of_cpu(*core.first()?)).collect()
    }
}

/// Reads `0-3,8-11`; empty for a node without CPUs.
fn parse_cpus(text: &str) -> Option<Vec<RangeInclusive<usize>>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter(|part| !part.is_empty()).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of nodes with these CPUs, among what else stands there.
    fn tree(nodes: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("online"), "0-1\n").unwrap();
        fs::create_dir(root.path().join("power")).unwrap();
        for (name, cpus) in nodes {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("cpulist"), cpus).unwrap();
        }
        root
    }

    fn cores(cpus: usize) -> Vec<Vec<usize>> {
        (0..cpus).map(|cpu| vec![cpu, cpu + cpus]).collect()
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(parse_cpus("0-3,8-11\n"), Some(vec![0..=3, 8..=11]));
        assert_eq!((parse_cpus("5"), parse_cpus("\n")), (Some(vec![5..=5]), Some(vec![])));
        for wrong in ["x", "1-", "-1", "1-2-3", "0 1"] {
            assert_eq!(parse_cpus(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn threads_are_on_the_nodes_of_their_cores() {
        let two = tree(&[("node1", "4-7,12-15\n"), ("node0", "0-3,8-11\n"), ("node2", "\n"), ("nodes", "9\n")]);
        let topology = Topology::read(two.path());
        assert_eq!(topology.nodes, [(0, vec![0..=3, 8..=11]), (1, vec![4..=7, 12..=15])]);
        assert_eq!(topology.of_threads(&cores(8), 8), Some(vec![0, 0, 0, 0, 1, 1, 1, 1]));
        assert_eq!(topology.of_threads(&cores(8), 5), Some(vec![0, 0, 0, 0, 1]));
        assert_eq!(topology.of_threads(&cores(8), 9), None);
        assert_eq!(topology.of_threads(&[vec![2], vec![16]], 2), None);
        let turns = Topology::read(tree(&[("node0", "0,2"), ("node1", "1,3")]).path());
        assert_eq!(turns.of_threads(&cores(4), 4), Some(vec![0, 1, 0, 1]));
        assert_eq!(Topology::read(&two.path().join("absent")).nodes, []);
    }

    #[test]
    fn threads_on_one_node_or_on_unknown_ones_have_none_that_matter() {
        assert_eq!(Numa::Nodes(vec![1, 0]).of_threads(2), [1, 0]);
        for (numa, threads) in [(Numa::Nodes(vec![1, 1]), 2), (Numa::Nodes(vec![0, 1]), 3), (Numa::Off, 2)] {
            assert_eq!(numa.of_threads(threads), [0; 0]);
        }
        assert_eq!((Numa::Auto.of_threads(1), Numa::Nodes(vec![]).of_threads(0)), (vec![], vec![]));
    }
}
