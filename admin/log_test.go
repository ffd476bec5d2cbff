package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/audit"
	"countersign/gate"
	"countersign/storage"
)

// kept is a server with a real store of so many records.
func kept(t testing.TB, records int) (*storage.Store, *LogReader) {
	t.Helper()
	dir := t.TempDir()
	store, err := storage.Open(filepath.Join(dir, "store.db"), storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	write(t, store, 1, records)
	listener, err := Listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := (&Server{Audit: store, Log: slog.New(slog.DiscardHandler)}).HTTP()
	go server.Serve(listener)
	t.Cleanup(func() {
		server.Close()
		store.Close()
	})
	return store, NewClient(filepath.Join(dir, "s")).Log(t.Context())
}

// write commits records, every third about the namespace shop.
func write(t testing.TB, store *storage.Store, first, last int) {
	t.Helper()
	var b gate.Batch
	for n := first; n <= last; n++ {
		r := audit.Record{V: audit.Version, ID: fmt.Sprint("id", n), Time: time.Unix(int64(n), 0).UTC(), Type: audit.ExecOutcome}
		if n%3 == 0 {
			r.Actions = []audit.Action{{Namespace: "shop"}}
		}
		b.Entries = append(b.Entries, gate.Entry{Record: r})
	}
	b.Entries[0].Payload, b.Entries[0].Sealed = []byte("payload"), []byte("sealed")
	b.Entries[0].Record.Payload = &audit.Payload{}
	if err := store.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

// numbers are those of what a search gives. A cut or changed record is an error.
func numbers(search func(f func(uint64, []byte) error) error) (seqs []uint64, err error) {
	err = search(func(seq uint64, record []byte) error {
		if n, ok := audit.Seq(record); !ok || n != seq {
			return fmt.Errorf("record %d is %s", seq, record)
		}
		seqs = append(seqs, seq)
		return nil
	})
	return seqs, err
}

// Through the socket the log is what it is in the file.
func TestLog(t *testing.T) {
	store, client := kept(t, 1000)
	for _, row := range []struct {
		q        audit.Query
		from, to uint64
		newest   bool
	}{
		{audit.Query{}, 0, 0, false}, {audit.Query{}, 0, 0, true}, {audit.Query{}, 1, 1, false}, {audit.Query{}, 999, 0, true}, {audit.Query{}, 1001, 0, false},
		{audit.Query{Namespace: "shop"}, 100, 700, false}, {audit.Query{Namespace: "shop", Since: time.Unix(500, 0)}, 0, 0, true}, {audit.Query{Text: "ID77"}, 0, 0, false},
		{audit.Query{Namespace: "a&b=\"\x00"}, 0, 0, false},
	} {
		want, err := numbers(func(f func(uint64, []byte) error) error { return store.Search(&row.q, row.from, row.to, row.newest, f) })
		if err != nil {
			t.Fatal(err)
		}
		got, err := numbers(func(f func(uint64, []byte) error) error {
			return client.Search(&row.q, row.from, row.to, row.newest, f)
		})
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%+v: %v, %v; want %v", row, got, err, want)
		}
	}
	enough := errors.New("enough")
	if err := client.Search(&audit.Query{}, 0, 0, false, func(uint64, []byte) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
	if p, err := client.Payload(1); err != nil || string(p) != "payload" {
		t.Errorf("%q, %v", p, err)
	}
	if p, err := client.SealedPayload(1); err != nil || string(p) != "sealed" {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := client.Payload(2); !errors.Is(err, gate.ErrNotFound) {
		t.Error(err)
	}
	ours, err := client.Checkpoint()
	theirs, _ := store.Checkpoint()
	if err != nil || string(ours) != string(theirs) || len(ours) == 0 {
		t.Errorf("%s, %v", ours, err)
	}
	indexes := make([]int64, 1500) // more than one request takes
	for i := range indexes {
		indexes[i] = int64(i)
	}
	got, err := client.ReadHashes(indexes)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := store.ReadHashes(indexes)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Error("other hashes than in the store")
	}
	if _, err := client.ReadHashes([]int64{1 << 40}); err == nil || !strings.Contains(err.Error(), "are missing") {
		t.Error(err)
	}
}

// Who follows gets what there is, and each record that comes, once.
func TestFollow(t *testing.T) {
	store, client := kept(t, 300)
	got := make(chan uint64)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- (&LogReader{ctx, client.client}).Follow(&audit.Query{Namespace: "shop"}, 295, func(seq uint64, _ []byte) error {
			got <- seq
			return nil
		}, func() error { return nil })
	}()
	for _, want := range []uint64{297, 300} {
		if seq := <-got; seq != want {
			t.Fatalf("record %d came instead of %d", seq, want)
		}
	}
	for n := uint64(301); n <= 330; n++ {
		write(t, store, int(n), int(n))
		if n%3 == 0 {
			if seq := <-got; seq != n {
				t.Fatalf("record %d came instead of %d", seq, n)
			}
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Only so many follow at once; one that leaves makes room.
func TestManyFollowers(t *testing.T) {
	_, client := kept(t, 1)
	begun := make(chan struct{})
	one := func(ctx context.Context) error {
		return (&LogReader{ctx, client.client}).Follow(&audit.Query{}, 1, func(uint64, []byte) error { begun <- struct{}{}; return nil }, func() error { return nil })
	}
	first, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- one(first) }()
	<-begun
	others, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxReaders - 1 {
		go one(others)
		<-begun
	}
	if err := one(others); err == nil || !strings.Contains(err.Error(), "16 others read the log at this moment") {
		t.Fatalf("one more: %v", err)
	}
	leave()
	<-left
	for { // the server sees it when the connection is gone
		err := client.Search(&audit.Query{}, 1, 0, false, func(uint64, []byte) error { return nil })
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "others read") {
			t.Fatal(err)
		}
	}
}

// A stream that ends before its end is never taken for a whole one, and what went
// wrong in the server is told.
func TestCutStream(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	var answer func(w *bufio.Writer)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		out := bufio.NewWriter(w)
		frame(out, 1, []byte("one"))
		answer(out)
		out.Flush()
	})}
	go server.Serve(listener)
	defer server.Close()
	for _, row := range []struct {
		name   string
		answer func(w *bufio.Writer)
		want   string
	}{
		{"no end", func(*bufio.Writer) {}, "the server broke off"},
		{"half a head", func(w *bufio.Writer) { w.Write(make([]byte, frameHead-1)) }, "the server broke off"},
		{"half a record", func(w *bufio.Writer) { w.Write([]byte{0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 9, '{'}) }, "the server broke off"},
		{"abort", func(w *bufio.Writer) { frame(w, 2, make([]byte, 9000)); w.Flush(); panic(http.ErrAbortHandler) }, "the server broke off"},
		{"an error", func(w *bufio.Writer) { frame(w, 0, []byte("the file is damaged")) }, "reading records: the file is damaged"},
		{"too long", func(w *bufio.Writer) { w.Write([]byte{0, 0, 0, 0, 0, 0, 0, 2, 255, 0, 0, 0}) }, "which no record has"},
		{"whole", func(w *bufio.Writer) { frame(w, 0, nil) }, ""},
	} {
		answer = row.answer
		n := 0
		err := NewClient(socket).Log(t.Context()).Search(&audit.Query{}, 1, 0, false, func(uint64, []byte) error { n++; return nil })
		if n == 0 || (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %d records, %v", row.name, n, err)
		}
	}
}

// What cannot be understood is refused.
func TestBadQuestions(t *testing.T) {
	_, client := kept(t, 1)
	for path, want := range map[string]string{
		"/v1/records?query=%7B%22who%22%3A%22x%22%7D": `unknown field "who"`,
		"/v1/records?from=-1":                         "reading what is asked for",
		"/v1/records?follow=maybe":                    "reading what is asked for",
		"/v1/payloads/x":                              "not a sequence number",
		"/v1/hashes?indexes=":                         "indexes are numbers",
		"/v1/hashes?indexes=-1":                       "indexes are numbers",
		"/v1/hashes?indexes=" + strings.Repeat("1,", maxHashes) + "1": "more than 1024 hashes",
	} {
		if _, err := client.all(path, 1000); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v", path, err)
		}
	}
}
