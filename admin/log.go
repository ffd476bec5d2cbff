package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"countersign/audit"
)

// Audit is the log as the server reads it for others.
type Audit interface {
	audit.Log
	// Head is the newest record, 0 where there is none.
	Head() (seq uint64, record []byte, err error)
	// Committed is closed after the next commit.
	Committed() <-chan struct{}
	// Verify checks the log against its checkpoints and against more.
	Verify(ctx context.Context, key note.Verifier, more [][]byte) (audit.Report, error)
}

const (
	// maxReaders bounds how many read the log at the same time, followers among them.
	// None has a queue: each reads from the store at its own pace.
	maxReaders = 16
	// maxHashes bounds how many hashes are asked for at once.
	maxHashes = 1024
)

// What a reader of records gets is frames: a sequence number and a length, of 8 and
// 4 bytes, big-endian, then the record. The number 0 ends the answer: what follows
// is why it is not whole, and nothing where it is. So one that was cut is noticed.
const frameHead = 12

func frame(w *bufio.Writer, seq uint64, data []byte) error {
	var head [frameHead]byte
	binary.BigEndian.PutUint64(head[:], seq)
	binary.BigEndian.PutUint32(head[8:], uint32(len(data)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// wanted is which records somebody asks for.
type wanted struct {
	query    audit.Query
	from, to uint64
	newest   bool // first
	follow   bool // and all that come
}

func readWanted(r *http.Request) (w wanted, err error) {
	if text := r.FormValue("query"); text != "" {
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&w.query); err != nil {
			return w, err
		}
	}
	for name, n := range map[string]*uint64{"from": &w.from, "to": &w.to} {
		if text := r.FormValue(name); text != "" {
			if *n, err = strconv.ParseUint(text, 10, 64); err != nil {
				return w, err
			}
		}
	}
	for name, b := range map[string]*bool{"newest": &w.newest, "follow": &w.follow} {
		if text := r.FormValue(name); text != "" {
			if *b, err = strconv.ParseBool(text); err != nil {
				return w, err
			}
		}
	}
	return w, nil
}

func (s *Server) records(w http.ResponseWriter, r *http.Request) {
	want, err := readWanted(r)
	if err != nil {
		http.Error(w, "reading what is asked for: "+err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case s.readers <- struct{}{}:
		defer func() { <-s.readers }()
	default:
		http.Error(w, strconv.Itoa(maxReaders)+" others read the log at this moment; try again when one of them has ended", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	out := bufio.NewWriterSize(w, 64<<10)
	write := func(seq uint64, record []byte) error { return frame(out, seq, record) }
	if want.follow {
		err = s.follow(r.Context(), want, write, func() error {
			if err := out.Flush(); err != nil {
				return err
			}
			return http.NewResponseController(w).Flush()
		})
	} else {
		err = s.Audit.Search(&want.query, want.from, want.to, want.newest, write)
	}
	if r.Context().Err() != nil {
		return // nobody is there any more
	}
	var why string
	if err != nil {
		s.Log.Error("reading the log for somebody at the admin socket", "err", err)
		why = err.Error()
	}
	if frame(out, 0, []byte(why)) == nil {
		out.Flush()
	}
}

// follow writes what there is and then what comes, until ctx ends.
func (s *Server) follow(ctx context.Context, want wanted, write func(uint64, []byte) error, flush func() error) error {
	for {
		committed := s.Audit.Committed()
		head, _, err := s.Audit.Head()
		if err == nil && head >= want.from && head > 0 {
			if err = s.Audit.Search(&want.query, want.from, head, false, write); err == nil {
				want.from = head + 1
			}
		}
		if err == nil {
			err = flush()
		}
		if err != nil {
			return err
		}
		select {
		case <-committed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// payload answers with one of the payloads of a record.
func (s *Server) payload(w http.ResponseWriter, r *http.Request, read func(seq uint64) ([]byte, error)) {
	seq, err := strconv.ParseUint(r.PathValue("seq"), 10, 64)
	if err != nil {
		http.Error(w, "what follows /v1/payloads/ is not a sequence number", http.StatusBadRequest)
		return
	}
	payload, err := read(seq)
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(payload)
}

func (s *Server) checkpoint(w http.ResponseWriter, _ *http.Request) {
	signed, err := s.Audit.Checkpoint()
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(signed)
}

// hashes answers with those of the tree at the places that are asked for, one
// behind the other.
func (s *Server) hashes(w http.ResponseWriter, r *http.Request) {
	list := strings.Split(r.FormValue("indexes"), ",")
	if len(list) > maxHashes {
		http.Error(w, "more than "+strconv.Itoa(maxHashes)+" hashes at once", http.StatusBadRequest)
		return
	}
	indexes := make([]int64, len(list))
	for i, text := range list {
		index, err := strconv.ParseUint(text, 10, 62)
		if err != nil {
			http.Error(w, "indexes are numbers with commas between them", http.StatusBadRequest)
			return
		}
		indexes[i] = int64(index)
	}
	hashes, err := s.Audit.ReadHashes(indexes)
	if err != nil {
		s.fail(w, err)
		return
	}
	var out bytes.Buffer
	for _, h := range hashes {
		out.Write(h[:])
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(out.Bytes())
}
