package storage

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// signer signs checkpoints of the log (Ed25519, as golang.org/x/mod/sumdb/note has it).
type signer struct {
	note.Signer
	verifier note.Verifier
	public   string // the verifier's key, as it is given to others
}

// openSigner reads the key that signs, audit.key in the folder, or makes it for a
// new log. The public key lies in audit.pub; it is derived again where it is gone.
func openSigner(folder string, fresh bool, origin string) (*signer, error) {
	path := filepath.Join(folder, "audit.key")
	secret, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && fresh:
		text, _, err := note.GenerateKey(rand.Reader, origin)
		if err != nil {
			return nil, fmt.Errorf("making the key of the audit log: %w", err)
		}
		secret = []byte(text + "\n")
		if err := writeKey(path, secret); err != nil {
			return nil, fmt.Errorf("writing the key of the audit log: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("reading the key of the audit log: %w; it lies beside the store, and without it the log cannot go on", err)
	}
	if err := private(path); err != nil {
		return nil, err
	}
	text := strings.TrimSpace(string(secret))
	inner, err := note.NewSigner(text)
	if err != nil {
		return nil, fmt.Errorf("reading the key of the audit log %s: it is not a key that signs notes; put back the right one", path)
	}
	s := &signer{Signer: inner}
	if s.public, err = publicKey(text); err != nil {
		return nil, fmt.Errorf("reading the key of the audit log %s: %w", path, err)
	}
	if s.verifier, err = note.NewVerifier(s.public); err != nil {
		return nil, err
	}
	// Whoever checks the log needs it, and nothing else of this server.
	public := filepath.Join(folder, "audit.pub")
	if data, err := os.ReadFile(public); err != nil || string(data) != s.public+"\n" {
		if err := os.WriteFile(public, []byte(s.public+"\n"), 0o644); err != nil {
			return nil, fmt.Errorf("writing the public key of the audit log: %w", err)
		}
	}
	return s, nil
}

// publicKey derives the public key from the text of a private one, which NewSigner
// has found good.
func publicKey(private string) (string, error) {
	parts := strings.SplitN(private, "+", 5) // PRIVATE+KEY+name+hash+key, and + is a digit of the key
	key, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if len(parts) != 5 || err != nil || len(key) != 1+ed25519.SeedSize {
		return "", errors.New("it is not an Ed25519 key")
	}
	public := ed25519.NewKeyFromSeed(key[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(parts[2], public)
}
