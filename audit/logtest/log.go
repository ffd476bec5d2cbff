package logtest

import (
	"bytes"
	"math/rand/v2"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
)

// Log is a signed log in memory.
type Log struct {
	Leaves   [][]byte
	Signer   note.Signer
	Verifier note.Verifier
	Public   string // the verifier's key
	tree     audit.Tree
	hashes   []tlog.Hash // as tlog stores them
}

// NewLog is an empty log with a key of its own.
func NewLog(seed uint64) *Log {
	var b [32]byte
	key := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	key.Read(b[:])
	private, public, err := note.GenerateKey(bytes.NewReader(b[:]), "log.example.com")
	if err != nil {
		panic(err)
	}
	l := &Log{Public: public}
	if l.Signer, err = note.NewSigner(private); err != nil {
		panic(err)
	}
	if l.Verifier, err = note.NewVerifier(public); err != nil {
		panic(err)
	}
	return l
}

// Add appends a record.
func (l *Log) Add(r audit.Record) {
	leaf, err := audit.Leaf(&r)
	if err != nil {
		panic(err)
	}
	leaf = audit.Number(leaf, l.tree.Size()+1)
	l.hashes = append(l.hashes, l.tree.Append(leaf)...)
	l.Leaves = append(l.Leaves, leaf)
}

// Fill appends records of a Maker until there are so many. After each stretch of
// records it appends one that says that a checkpoint was anchored; 0 is never.
func (l *Log) Fill(m *Maker, size, stretch int) {
	for len(l.Leaves) < size {
		if stretch > 0 && len(l.Leaves)%stretch == stretch-1 {
			l.Add(audit.Record{V: audit.Version, ID: m.id(), Time: m.now, Type: audit.LogCheckpoint,
				Checkpoint: &audit.Anchored{Size: l.tree.Size(), Note: string(l.Checkpoint()), Anchors: []string{"file"}}})
			continue
		}
		l.Add(m.Next().Record)
	}
}

// Prune appends a record that says that those before seq were taken out, and has
// the rest of the log exported from there on.
func (l *Log) Prune(m *Maker, seq uint64) (export []byte) {
	var edge []tlog.Hash
	for _, index := range audit.EdgeIndexes(seq - 1) {
		edge = append(edge, l.hashes[index])
	}
	l.Add(audit.Record{V: audit.Version, ID: m.id(), Time: m.now, Type: audit.LogPruned, Pruned: &audit.Pruned{PayloadsBefore: seq, RecordsBefore: seq, Edge: edge}})
	return Export(l.Leaves[seq-1:])
}

// Checkpoint is the newest checkpoint, signed.
func (l *Log) Checkpoint() []byte {
	signed, err := audit.Checkpoint{Origin: l.Signer.Name(), Size: l.tree.Size(), Root: l.tree.Root()}.Sign(l.Signer)
	if err != nil {
		panic(err)
	}
	return signed
}

// Export is JSONL of leaves.
func Export(leaves [][]byte) []byte {
	var export []byte
	for _, leaf := range leaves {
		export = append(append(export, leaf...), '\n')
	}
	return export
}
