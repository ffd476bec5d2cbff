package mcp

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// headersWithin, bodyWithin and idleWithin bound what a client has to do, and
	// chunkWithin how long it may take in each piece of an answer. Nothing bounds how
	// long an answer takes: a call may wait, and a command run.
	headersWithin = 10 * time.Second
	bodyWithin    = 30 * time.Second
	idleWithin    = 2 * time.Minute
	chunkWithin   = 30 * time.Second
	// maxHeaders bounds the head of a request, in bytes. A token is at most 16 KiB, and
	// there is room for larger ones so that their refusal is on record: of a head that
	// is larger still, net/http answers 431 by itself and tells nobody.
	maxHeaders = 128 << 10
	// maxConnections bounds how many are open at once, and with maxHeaders how much
	// memory strangers can fill.
	maxConnections = 2000
)

// Web is an HTTP server for agents, bounded where a client could hold it up. Its
// listener is to be one of Listener.
func Web(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           timed(handler, bodyWithin, chunkWithin),
		ReadHeaderTimeout: headersWithin, IdleTimeout: idleWithin, MaxHeaderBytes: maxHeaders,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if wrapped, ok := conn.(*tls.Conn); ok {
				conn = wrapped.NetConn()
			}
			return context.WithValue(ctx, guestKey{}, conn)
		},
	}
}

// timed gives every request its deadlines: one until its body has arrived, and one
// for each piece that is written. In between, nothing is timed.
func timed(next http.Handler, body, chunk time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g, ok := r.Context().Value(guestKey{}).(*guest); ok {
			g.enter()
			defer g.leave()
		}
		control := http.NewResponseController(w)
		control.SetWriteDeadline(time.Time{})
		if r.Body != http.NoBody {
			control.SetReadDeadline(time.Now().Add(body))
			r.Body = &timedBody{r.Body, control}
		} else {
			control.SetReadDeadline(time.Time{}) // net/http reads on, to see a client go away
		}
		next.ServeHTTP(&timedWriter{w, control, chunk}, r)
		control.SetWriteDeadline(time.Now().Add(chunk)) // net/http writes what is left
	})
}

type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// timedWriter flushes by itself: mcp-go sends no stream to a writer that cannot.
type timedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	chunk   time.Duration
}

func (w *timedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A deadline is taken back after each piece: over HTTP/2 one that passes while a
// call waits would end it.
func (w *timedWriter) Write(p []byte) (int, error) {
	w.control.SetWriteDeadline(time.Now().Add(w.chunk))
	defer w.control.SetWriteDeadline(time.Time{})
	return w.ResponseWriter.Write(p)
}

func (w *timedWriter) Flush() {
	w.control.SetWriteDeadline(time.Now().Add(w.chunk))
	defer w.control.SetWriteDeadline(time.Time{})
	w.control.Flush()
}

// Listener bounds how many connections are open at once. When one too many comes,
// the one goes that has been without a request for longest: whoever opens many and
// asks nothing loses those, and keeps nobody out.
func Listener(l net.Listener) net.Listener {
	return &door{Listener: l, most: maxConnections, waiting: list.New()}
}

type door struct {
	net.Listener
	most int

	mu      sync.Mutex
	open    int
	waiting *list.List // of *guest
}

// guest is a connection; place is where it waits while no request of it is served.
type guest struct {
	net.Conn
	door   *door
	served int
	place  *list.Element
	closed bool
}

type guestKey struct{}

func (d *door) Accept() (net.Conn, error) {
	conn, err := d.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &guest{Conn: conn, door: d}
	d.mu.Lock()
	d.open++
	g.place = d.waiting.PushBack(g)
	var out *guest
	if d.open > d.most {
		out = d.waiting.Front().Value.(*guest) // itself, when all others are served
	}
	d.mu.Unlock()
	if out != nil {
		out.Close()
	}
	return g, nil
}

func (g *guest) enter() {
	g.door.mu.Lock()
	defer g.door.mu.Unlock()
	if g.served++; g.place != nil {
		g.door.waiting.Remove(g.place)
		g.place = nil
	}
}

func (g *guest) leave() {
	g.door.mu.Lock()
	defer g.door.mu.Unlock()
	if g.served--; g.served == 0 && !g.closed {
		g.place = g.door.waiting.PushBack(g)
	}
}

func (g *guest) Close() error {
	g.door.mu.Lock()
	if !g.closed {
		g.closed = true
		g.door.open--
		if g.place != nil {
			g.door.waiting.Remove(g.place)
			g.place = nil
		}
	}
	g.door.mu.Unlock()
	return g.Conn.Close()
}

// flushed counts how often an answer was flushed; see settle.
type flushed struct {
	http.ResponseWriter
	times atomic.Int64
}

type flushedKey struct{}

func (w *flushed) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *flushed) Flush() {
	http.NewResponseController(w.ResponseWriter).Flush() // an error is the client's going away
	w.times.Add(1)
}
