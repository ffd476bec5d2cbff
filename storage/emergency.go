package storage

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"countersign/audit"
	"countersign/gate"
)

// Emergency is a file for outcomes that the log cannot take: JSON lines, each with an
// HMAC by a key of the store, so that nothing can be imported that the server did not
// write. It is opened only when it is needed.
type Emergency struct {
	path string
	key  []byte
	mu   sync.Mutex
}

// MaxEmergency bounds the file, in bytes.
const MaxEmergency = 64 << 20

// emergencyHead is how every line begins.
const emergencyHead = `{"entry":{"record":{`

// emergencyLine is one line of the file.
type emergencyLine struct {
	Entry json.RawMessage `json:"entry"` // an emergencyEntry
	MAC   string          `json:"mac"`   // HMAC-SHA256 of Entry, byte for byte, in hex
}

type emergencyEntry struct {
	Record  audit.Record `json:"record"`
	Payload string       `json:"payload,omitempty"` // JSON, masked
	Sealed  []byte       `json:"sealed,omitempty"`
}

// Emergency is the emergency file of this store.
func (s *Store) Emergency(path string) *Emergency {
	return &Emergency{path: path, key: s.Key("emergency")}
}

// Append adds entries, durably.
func (e *Emergency) Append(entries []gate.Entry) (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f, err := os.OpenFile(e.path, os.O_RDWR|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := whole(f)
	if err != nil {
		return err
	}
	text, err := e.lines(entries, true)
	if err == nil && size+int64(len(text)) > MaxEmergency {
		text, err = e.lines(entries, false) // what was done matters most
	}
	if err == nil && size+int64(len(text)) > MaxEmergency {
		err = fmt.Errorf("%s has %d bytes, and takes %d at most: import it, and take it away", e.path, size, MaxEmergency)
	}
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Truncate(size)) // or the next line would be glued to half a one
	}
	folder, err := os.Open(filepath.Dir(e.path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// whole takes away what follows the last whole line, which a crash has cut off, and
// returns the size.
func whole(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", f.Name())
	}
	if err != nil || info.Size() == 0 || info.Size() > MaxEmergency {
		return info.Size(), err
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return 0, err
	}
	end := int64(bytes.LastIndexByte(data, '\n') + 1)
	if end < info.Size() {
		err = f.Truncate(end)
	}
	return end, err
}

func (e *Emergency) lines(entries []gate.Entry, payloads bool) (text []byte, err error) {
	for _, entry := range entries {
		line := emergencyEntry{Record: entry.Record, Payload: string(entry.Payload), Sealed: entry.Sealed}
		if !payloads {
			line.Record.Payload, line.Payload, line.Sealed = nil, "", nil
		}
		data, err := json.Marshal(line)
		if err != nil {
			return nil, err
		}
		text = fmt.Appendf(text, "{\"entry\":%s,\"mac\":\"%s\"}\n", data, e.mac(data))
	}
	return text, nil
}

func (e *Emergency) mac(entry []byte) string {
	h := hmac.New(sha256.New, e.key)
	h.Write(entry)
	return hex.EncodeToString(h.Sum(nil))
}

// Waiting is the path of the file when something is in it, and else empty.
func (e *Emergency) Waiting() string {
	info, err := os.Stat(e.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return ""
	}
	return e.path
}

// Import adds the records of an emergency file to the log, with marks that say who did
// so and when; those that the log has already, or that held says will still be stored
// otherwise, are left out. A file that is not whole the server's own is refused whole,
// but for a last line that was cut off. Where it ends with an error, what was added
// stays, and it can be repeated.
func (s *Store) Import(ctx context.Context, file []byte, by audit.Imported, held func(id string) bool) (done gate.Imported, err error) {
	if len(file) > MaxEmergency {
		return done, fmt.Errorf("the file has more than %d bytes, which no emergency file has", MaxEmergency)
	}
	e := s.Emergency("")
	var entries []gate.Entry
	number := 0
	for line := range bytes.Lines(file) {
		number++
		entry, err := e.parse(line)
		if err != nil && cut(line) {
			done.Cut = true
			break
		}
		if err != nil {
			return done, fmt.Errorf("line %d: %w; nothing was imported", number, err)
		}
		entries = append(entries, entry)
	}
	seen := map[string]bool{}
	var missing []gate.Entry
	for _, entry := range entries {
		id := entry.Record.ID
		if seen[id] {
			continue
		}
		seen[id] = true
		known, err := s.has(&entry.Record)
		switch {
		case err != nil:
			return done, err
		case known:
			done.Known++
		case held(id):
			done.Held++
		default:
			entry.Record.Imported = &by
			missing = append(missing, entry)
		}
	}
	for some := range slices.Chunk(missing, 100) {
		if err := s.Commit(ctx, gate.Batch{Entries: some}); err != nil {
			return done, err
		}
		done.Added += len(some)
	}
	return done, nil
}

// cut reports whether a line is the beginning of one of ours, and no more.
func cut(line []byte) bool {
	text := string(line)
	return !strings.HasSuffix(text, "\n") && !json.Valid(line) && (strings.HasPrefix(text, emergencyHead) || strings.HasPrefix(emergencyHead, text))
}

// parse reads a line that the server has written.
func (e *Emergency) parse(text []byte) (entry gate.Entry, err error) {
	foreign := errors.New("it is not a line that this log's server has written to its emergency file, or it was changed")
	var line emergencyLine
	var in emergencyEntry
	if strict(text, &line) != nil || !hmac.Equal([]byte(line.MAC), []byte(e.mac(line.Entry))) || strict(line.Entry, &in) != nil {
		return entry, foreign
	}
	r := in.Record
	if r.V != audit.Version || r.ID == "" || r.Op == "" || r.Seq != 0 || r.Imported != nil {
		return entry, foreign
	}
	if r.Type != audit.ExecOutcome && r.Type != audit.ExecUnknown {
		return entry, fmt.Errorf("it is a record of type %s; only outcomes can be imported", r.Type)
	}
	entry = gate.Entry{Record: r, Sealed: in.Sealed}
	if r.Payload != nil {
		entry.Payload = []byte(in.Payload)
		if sum := sha256.Sum256(entry.Payload); hex.EncodeToString(sum[:]) != r.Payload.SHA256 {
			return entry, foreign
		}
	}
	return entry, nil
}

// strict decodes one JSON value that has no unknown fields, and nothing after it.
func strict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	d.UseNumber()
	err := d.Decode(v)
	if _, end := d.Token(); err == nil && !errors.Is(end, io.EOF) {
		err = errors.New("more follows")
	}
	return err
}

// has reports whether the log holds the record.
func (s *Store) has(r *audit.Record) (bool, error) {
	stop := errors.New("found")
	err := s.Search(&audit.Query{Op: r.Op, Type: r.Type, Text: r.ID}, 0, 0, true, func(_ uint64, leaf []byte) error {
		var stored struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(leaf, &stored) == nil && stored.ID == r.ID {
			return stop
		}
		return nil
	})
	if errors.Is(err, stop) {
		return true, nil
	}
	return false, err
}
