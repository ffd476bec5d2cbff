package anchors

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
)

// testLog is a log in memory.
type testLog struct {
	signer   note.Signer
	verifier note.Verifier
	leaves   []string
	hashes   []tlog.Hash
}

func newLog(t *testing.T, leaves ...string) *testLog {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, "log.example")
	if err != nil {
		t.Fatal(err)
	}
	l := &testLog{}
	if l.signer, err = note.NewSigner(secret); err != nil {
		t.Fatal(err)
	}
	if l.verifier, err = note.NewVerifier(public); err != nil {
		t.Fatal(err)
	}
	l.add(t, leaves...)
	return l
}

// rewritten is another log of the same key.
func (l *testLog) rewritten(t *testing.T, leaves ...string) *testLog {
	other := &testLog{signer: l.signer, verifier: l.verifier}
	other.add(t, leaves...)
	return other
}

func (l *testLog) add(t *testing.T, leaves ...string) {
	t.Helper()
	for _, leaf := range leaves {
		hashes, err := tlog.StoredHashes(int64(len(l.leaves)), []byte(leaf), l)
		if err != nil {
			t.Fatal(err)
		}
		l.leaves, l.hashes = append(l.leaves, leaf), append(l.hashes, hashes...)
	}
}

func (l *testLog) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range indexes {
		out = append(out, l.hashes[i])
	}
	return out, nil
}

func (l *testLog) Checkpoint() ([]byte, error) {
	root, err := tlog.TreeHash(int64(len(l.leaves)), l)
	if err != nil {
		return nil, err
	}
	return audit.Checkpoint{Origin: l.verifier.Name(), Size: uint64(len(l.leaves)), Root: root}.Sign(l.signer)
}

func (l *testLog) head(t *testing.T) Head {
	t.Helper()
	loop := &Loop{Source: l, Verifier: l.verifier}
	if err := loop.look(); err != nil {
		t.Fatal(err)
	}
	return loop.head
}

// put is one Put of an anchor.
func put(t *testing.T, a Anchor, l *testLog) (string, error) {
	t.Helper()
	signatures, err := a.Put(t.Context(), l.head(t))
	return string(signatures), err
}

// What a ConfigMap gets: a name that tells the size and sorts by it, and the note.
func TestConfigMaps(t *testing.T) {
	l := newLog(t, "a", "b", "c")
	var got []string
	a := ConfigMaps("east", "anchors", func(_ context.Context, prefix string, labels, data map[string]string) error {
		got = append(got, fmt.Sprint(prefix, labels, data))
		return nil
	})
	if _, err := put(t, a, l); err != nil {
		t.Fatal(err)
	}
	signed, _ := l.Checkpoint()
	want := fmt.Sprint("countersign-checkpoint-00000000000000000003-", map[string]string{"countersign/anchor": "checkpoint"}, map[string]string{"checkpoint": string(signed)})
	if a.Name != "configmap:east/anchors" || len(got) != 1 || got[0] != want {
		t.Errorf("%s: %q, want %q", a.Name, got, want)
	}
}

// opens tells the sizes of the checkpoints in a text, which all open.
func opens(t *testing.T, text []byte, v note.Verifier) []uint64 {
	t.Helper()
	var sizes []uint64
	for _, signed := range audit.Checkpoints(text) {
		c, err := audit.OpenCheckpoint(signed, v)
		if err != nil {
			t.Errorf("%q: %v", signed, err)
		}
		sizes = append(sizes, c.Size)
	}
	return sizes
}

func TestHeadProves(t *testing.T) {
	l := newLog(t, "a", "b", "c", "d", "e")
	h := l.head(t)
	if _, err := h.Prove(6); err == nil {
		t.Error("a proof from more than there is")
	}
	if _, err := h.Prove(0); err == nil {
		t.Error("a proof from nothing")
	}
	signed, _ := l.Checkpoint()
	if !bytes.Equal(h.Note, signed) {
		t.Error("another note")
	}
}
