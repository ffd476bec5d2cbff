package audit

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Log is a log that is read: the store itself, or the server that has it open.
type Log interface {
	// Search calls f with the exact bytes of every record that the query is about,
	// of those with sequence numbers from..to, both included; to 0 is the newest.
	// They come in order, or the newest first. It ends when f returns an error,
	// which it returns. The bytes are valid only during the call. A nil error says
	// that none is missing.
	Search(q *Query, from, to uint64, newestFirst bool, f func(seq uint64, record []byte) error) error
	// Payload is the masked payload that a record commits to, SealedPayload the
	// unmasked one, encrypted for auditors. Where there is none the error wraps
	// gate.ErrNotFound.
	Payload(seq uint64) ([]byte, error)
	SealedPayload(seq uint64) ([]byte, error)
	// Checkpoint is the newest one, signed.
	Checkpoint() ([]byte, error)
	tlog.HashReader
}

// ReadCheckpoint reads a signed checkpoint of this log itself, and does not look at
// the signature: OpenCheckpoint does.
func ReadCheckpoint(signed []byte) (Checkpoint, error) {
	text, _, found := strings.Cut(string(signed), "\n\n")
	c, err := parseCheckpoint(text + "\n")
	if err == nil && !found {
		err = errors.New("it has no signature")
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrBadCheckpoint, err)
	}
	return c, nil
}
