package admin

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
)

// LogReader reads the log of a running server. It implements audit.Log.
type LogReader struct {
	ctx    context.Context // of the one command that reads
	client *Client
}

// Log reads the server's log until ctx ends.
func (c *Client) Log(ctx context.Context) *LogReader { return &LogReader{ctx, c} }

// ErrCut says that the server broke off before all was there.
var ErrCut = errors.New("the server broke off")

const (
	// maxRecord and maxPayload bound what is taken from the server, in bytes.
	maxRecord  = 1 << 20
	maxPayload = 256 << 20
)

// Search implements audit.Log.
func (l *LogReader) Search(q *audit.Query, from, to uint64, newestFirst bool, f func(seq uint64, record []byte) error) error {
	return l.read(q, url.Values{
		"from": {strconv.FormatUint(from, 10)}, "to": {strconv.FormatUint(to, 10)}, "newest": {strconv.FormatBool(newestFirst)},
	}, f, nil)
}

// Follow calls f with every record that the query is about from a sequence number
// on, and with those that come, until f fails or the server breaks off. idle is
// called whenever nothing more is there yet.
func (l *LogReader) Follow(q *audit.Query, from uint64, f func(seq uint64, record []byte) error, idle func() error) error {
	return l.read(q, url.Values{"from": {strconv.FormatUint(from, 10)}, "follow": {"true"}}, f, idle)
}

func (l *LogReader) read(q *audit.Query, values url.Values, f func(seq uint64, record []byte) error, idle func() error) error {
	query, err := json.Marshal(q)
	if err != nil {
		return err
	}
	values.Set("query", string(query))
	body, err := l.client.request(l.ctx, http.MethodGet, "/v1/records?"+values.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	in := bufio.NewReaderSize(body, 256<<10)
	var head [frameHead]byte
	var data []byte
	for {
		if idle != nil && in.Buffered() == 0 {
			if err := idle(); err != nil {
				return err
			}
		}
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return fmt.Errorf("reading records: %w: %w", ErrCut, err)
		}
		seq, size := binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint32(head[8:])
		if size > maxRecord {
			return fmt.Errorf("reading records: what follows has %d bytes, which no record has", size)
		}
		data = slices.Grow(data[:0], int(size))[:size]
		if _, err := io.ReadFull(in, data); err != nil {
			return fmt.Errorf("reading records: %w: %w", ErrCut, err)
		}
		switch {
		case seq == 0 && size == 0:
			return nil
		case seq == 0:
			return fmt.Errorf("reading records: %s", data)
		}
		if err := f(seq, data); err != nil {
			return err
		}
	}
}

// Payload implements audit.Log.
func (l *LogReader) Payload(seq uint64) ([]byte, error) {
	return l.all("/v1/payloads/"+strconv.FormatUint(seq, 10), maxPayload)
}

// SealedPayload implements audit.Log.
func (l *LogReader) SealedPayload(seq uint64) ([]byte, error) {
	return l.all("/v1/payloads/"+strconv.FormatUint(seq, 10)+"/sealed", maxPayload)
}

// Checkpoint implements audit.Log.
func (l *LogReader) Checkpoint() ([]byte, error) { return l.all("/v1/checkpoint", maxRecord) }

// ReadHashes implements tlog.HashReader.
func (l *LogReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, 0, len(indexes))
	for some := range slices.Chunk(indexes, maxHashes) {
		list := make([]string, len(some))
		for i, index := range some {
			list[i] = strconv.FormatInt(index, 10)
		}
		data, err := l.all("/v1/hashes?indexes="+strings.Join(list, ","), maxHashes*tlog.HashSize)
		if err != nil {
			return nil, err
		}
		if len(data) != len(some)*tlog.HashSize {
			return nil, fmt.Errorf("reading hashes: the server sent %d bytes for %d of them", len(data), len(some))
		}
		for h := range slices.Chunk(data, tlog.HashSize) {
			hashes = append(hashes, tlog.Hash(h))
		}
	}
	return hashes, nil
}

func (l *LogReader) all(path string, most int64) ([]byte, error) {
	body, err := l.client.request(l.ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("it has more than %d bytes", most)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the server's answer: %w", err)
	}
	return data, nil
}
