package audit

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// stored are the hashes of a log as tlog numbers them.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(s)) {
			return nil, fmt.Errorf("there is no hash %d", index)
		}
		hashes[i] = s[index]
	}
	return hashes, nil
}

// A Tree is what tlog makes of the same leaves, at every size: the hashes to store,
// the root, and the edge, from which it goes on.
func TestTree(t *testing.T) {
	var tree Tree
	var hashes stored
	for size := range int64(1100) {
		want, err := tlog.TreeHash(size, hashes)
		if err != nil || tree.Root() != want || tree.Size() != uint64(size) {
			t.Fatalf("size %d: root %v of %d leaves, want %v, %v", size, tree.Root(), tree.Size(), want, err)
		}
		edge, err := hashes.ReadHashes(EdgeIndexes(uint64(size)))
		if err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		again := NewTree(uint64(size), slices.Clone(edge))
		if again.Root() != want {
			t.Fatalf("size %d: made of its edge it has another root", size)
		}

		leaf := fmt.Appendf(nil, "leaf %d", size)
		stored, err := tlog.StoredHashes(size, leaf, hashes)
		if err != nil {
			t.Fatal(err)
		}
		known, fromEdge := tree.Append(leaf), again.AppendHash(tlog.RecordHash(leaf))
		if !slices.Equal(known, stored) || !slices.Equal(fromEdge, stored) {
			t.Fatalf("size %d: %v, and made of its edge %v, to store, want %v", size, known, fromEdge, stored)
		}
		hashes = append(hashes, stored...)
	}
}

// A tree that is made of an edge does not change the edge, nor another tree of it.
func TestTreesOfOneEdge(t *testing.T) {
	edge := []tlog.Hash{tlog.RecordHash([]byte("a")), tlog.RecordHash([]byte("b"))}
	one, two := NewTree(3, edge), NewTree(3, edge)
	one.Append([]byte("one"))
	two.Append([]byte("two"))
	again := NewTree(3, edge)
	again.Append([]byte("one"))
	if one.Root() == two.Root() || one.Root() != again.Root() {
		t.Error("they share what they append")
	}
}

func TestTreeOfAnotherEdge(t *testing.T) {
	for _, row := range []struct {
		size uint64
		edge int
	}{{0, 1}, {1, 0}, {3, 1}, {4, 2}, {1<<64 - 1, 63}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a tree of %d leaves was made of %d hashes", row.size, row.edge)
				}
			}()
			NewTree(row.size, make([]tlog.Hash, row.edge))
		}()
	}
}
