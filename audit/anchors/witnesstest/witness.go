// Package witnesstest is a witness for tests. It speaks C2SP tlog-witness over
// HTTP and checks what the document demands of a witness, proofs included, but
// forgets everything when it ends.
package witnesstest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Witness is one that listens on this machine.
type Witness struct {
	// URL is its submission prefix, Key its vkey.
	URL, Key string

	signer *torchwood.CosignatureSigner
	server *httptest.Server

	mu   sync.Mutex
	logs map[string]note.Verifier
	seen map[string]tlog.Tree
	lie  http.HandlerFunc
	n    int
}

// Start starts a witness of this name.
func Start(name string) (*Witness, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := torchwood.NewCosignatureSigner(name, key)
	if err != nil {
		return nil, err
	}
	w := &Witness{Key: signer.Verifier().String(), signer: signer, logs: map[string]note.Verifier{}, seen: map[string]tlog.Tree{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", w.addCheckpoint)
	w.server = httptest.NewServer(mux)
	w.URL = w.server.URL
	return w, nil
}

// Close ends it.
func (w *Witness) Close() { w.server.Close() }

// Know makes it know a log.
func (w *Witness) Know(v note.Verifier) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs[v.Name()] = v
}

// Lie makes it answer otherwise than it should; nil ends that.
func (w *Witness) Lie(lie http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lie = lie
}

// Seen is the size of the log that it last signed, and Requests how many came.
func (w *Witness) Seen(origin string) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[origin].N
}

// Requests is how many came.
func (w *Witness) Requests() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// Sign signs a checkpoint's text, whatever it is, and returns the line.
func (w *Witness) Sign(text string) (string, error) {
	signed, err := note.Sign(&note.Note{Text: text}, w.signer)
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(string(signed), text+"\n"), nil
}

func (w *Witness) addCheckpoint(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	if lie := w.lie; lie != nil {
		w.mu.Unlock() // it may take its time
		lie(rw, r)
		w.mu.Lock()
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	head, signed, _ := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	old, err := size(strings.TrimPrefix(lines[0], "old "))
	if err != nil || !strings.HasPrefix(lines[0], "old ") || len(lines) > 64 {
		http.Error(rw, "bad old size or proof", http.StatusBadRequest)
		return
	}
	var proof tlog.TreeProof
	for _, line := range lines[1:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(hash) != tlog.HashSize {
			http.Error(rw, "bad proof", http.StatusBadRequest)
			return
		}
		proof = append(proof, tlog.Hash(hash))
	}
	origin, _, _ := strings.Cut(string(signed), "\n")
	verifier, known := w.logs[origin]
	if !known {
		http.Error(rw, "unknown log", http.StatusNotFound)
		return
	}
	n, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusForbidden)
		return
	}
	c, err := torchwood.ParseCheckpoint(n.Text)
	if err != nil || c.N < old {
		http.Error(rw, "bad checkpoint", http.StatusBadRequest)
		return
	}
	seen := w.seen[origin]
	if seen.N != old || old == c.N && seen.Hash != c.Hash {
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(http.StatusConflict)
		fmt.Fprintf(rw, "%d\n", seen.N)
		return
	}
	if old == 0 && len(proof) > 0 || old > 0 && tlog.CheckTree(proof, c.N, c.Hash, old, seen.Hash) != nil {
		http.Error(rw, "the proof is wrong", http.StatusUnprocessableEntity)
		return
	}
	line, err := w.Sign(n.Text)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	w.seen[origin] = c.Tree
	io.WriteString(rw, line)
}

func size(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != text {
		return 0, errors.New("no size")
	}
	return n, nil
}
