package audit

import (
	"crypto/sha256"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree is the right edge of a Merkle tree (RFC 6962, section 2.1): all that is
// needed to append to it and to know its root. The zero Tree is empty.
type Tree struct {
	size uint64
	edge []tlog.Hash // the roots of its perfect subtrees, the largest first
}

// NewTree is the tree of a size whose edge is known, the hashes at
// EdgeIndexes(size). There must be as many.
func NewTree(size uint64, edge []tlog.Hash) Tree {
	if len(edge) != bits.OnesCount64(size) {
		panic("audit: an edge of another size")
	}
	return Tree{size, slices.Clone(edge)}
}

// EdgeIndexes are where tlog stores the edge of a tree of this size.
func EdgeIndexes(size uint64) []int64 {
	var indexes []int64
	for done := uint64(0); done < size; {
		level := bits.Len64(size-done) - 1
		indexes = append(indexes, tlog.StoredHashIndex(level, int64(done>>level)))
		done += 1 << level
	}
	return indexes
}

// Size is how many leaves the tree has.
func (t *Tree) Size() uint64 { return t.size }

// Append adds a leaf. It returns the hashes that are now known, which is what tlog
// stores for it: the leaf's own, then those of the subtrees that it completes.
func (t *Tree) Append(leaf []byte) []tlog.Hash { return t.AppendHash(tlog.RecordHash(leaf)) }

// AppendHash adds a leaf of which only the hash is known.
func (t *Tree) AppendHash(h tlog.Hash) []tlog.Hash {
	known := []tlog.Hash{h}
	for level := t.size; level&1 == 1; level >>= 1 {
		last := len(t.edge) - 1
		h = tlog.NodeHash(t.edge[last], h)
		t.edge = t.edge[:last]
		known = append(known, h)
	}
	t.edge = append(t.edge, h)
	t.size++
	return known
}

// Root is the hash of the whole tree.
func (t *Tree) Root() tlog.Hash {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	root := t.edge[len(t.edge)-1]
	for i := len(t.edge) - 2; i >= 0; i-- {
		root = tlog.NodeHash(t.edge[i], root)
	}
	return root
}
