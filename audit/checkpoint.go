package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is the size of a log and the root hash of its tree. Signed as a
// note, it commits to every record up to that size (C2SP tlog-checkpoint).
type Checkpoint struct {
	// Origin names the log. It is the name of the key that signs, too.
	Origin string
	Size   uint64
	Root   tlog.Hash
}

// Text is what is signed.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatUint(c.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"
}

// Sign makes a signed note of it.
func (c Checkpoint) Sign(s note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: c.Text()}, s)
}

// What is wrong with a checkpoint that does not open.
var (
	// ErrOtherKey says that none of its signatures is of the key that was expected.
	ErrOtherKey = errors.New("it is signed with another key")
	// ErrBadCheckpoint says that it was changed after it was signed, or is none.
	ErrBadCheckpoint = errors.New("it is no checkpoint of this log, or was changed")
)

// OpenCheckpoint reads a signed checkpoint whose signature is v's. Its error wraps
// ErrOtherKey or ErrBadCheckpoint.
func OpenCheckpoint(signed []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	var unknown *note.UnverifiedNoteError
	if errors.As(err, &unknown) {
		return Checkpoint{}, ErrOtherKey
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrBadCheckpoint, err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrBadCheckpoint, err)
	}
	if c.Origin != v.Name() {
		return Checkpoint{}, fmt.Errorf("%w: it is of the log %q", ErrBadCheckpoint, c.Origin)
	}
	return c, nil
}

func parseCheckpoint(text string) (c Checkpoint, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[0] == "" {
		return c, errors.New("it has fewer than three lines")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return c, fmt.Errorf("its size is %q", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return c, fmt.Errorf("its root is %q", lines[2])
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: tlog.Hash(root)}, nil
}

// Checkpoints takes a text apart that holds signed checkpoints one after the
// other, as a file that they are anchored in does. What lies between them, such as
// one that was cut short, comes as a piece of its own, which does not open.
func Checkpoints(text []byte) (signed [][]byte) {
	// A note is its text, one empty line, and lines of signatures, each of which
	// begins with an em dash. Other empty lines mean nothing.
	var body, signatures strings.Builder
	flush := func() {
		switch {
		case signatures.Len() > 0:
			signed = append(signed, []byte(body.String()+"\n"+signatures.String()))
		case body.Len() > 0:
			signed = append(signed, []byte(body.String()))
		}
		body.Reset()
		signatures.Reset()
	}
	empty := false // the line before was
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) == "" {
			empty = true
			continue
		}
		switch isSignature := strings.HasPrefix(line, "— "); {
		case isSignature && (signatures.Len() == 0) == empty:
			signatures.WriteString(line)
		case signatures.Len() > 0 || empty || isSignature:
			flush()
			fallthrough
		default:
			body.WriteString(line)
		}
		empty = false
	}
	flush()
	return signed
}
