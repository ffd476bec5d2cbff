package rig

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Proxy stands between Countersign and the API server. It can hold a request,
// so that a test can end the server at exactly that point and then decide
// whether the request arrives.
type Proxy struct {
	// Kubeconfig leads through the proxy.
	Kubeconfig string

	mu      sync.Mutex
	between func(http.Handler) http.Handler
	hold    func(*http.Request) bool
	held    chan struct{}
	verdict chan bool
	spent   time.Duration
	server  *http.Server
}

// StartProxy starts one in front of the control plane; it gives every
// request the token, and its kubeconfig is written to dir.
func StartProxy(c *ControlPlane, token, dir string) (*Proxy, error) {
	ca, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	target, err := url.Parse(c.Server)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{Kubeconfig: filepath.Join(dir, "proxied.kubeconfig")}
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	quiet := log.New(io.Discard, "", 0) // who asked is told
	forward.ErrorLog = quiet
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.pass(r) {
			panic(http.ErrAbortHandler) // the request is lost on its way
		}
		if err := Whole(r); err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Header.Set("Authorization", "Bearer "+token) // client-go sends none without TLS
		// The one who sent it may be dead by now; it arrives all the same. (Without
		// a context that can end, ReverseProxy would watch the connection instead.)
		ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
		defer cancel()
		start := time.Now()
		forward.ServeHTTP(w, r.WithContext(ctx))
		p.mu.Lock()
		p.spent += time.Since(start)
		p.mu.Unlock()
	})
	p.server = &http.Server{ReadHeaderTimeout: 10 * time.Second, ErrorLog: quiet, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		between := p.between
		p.mu.Unlock()
		if between == nil {
			next.ServeHTTP(w, r)
			return
		}
		between(next).ServeHTTP(w, r)
	})}
	go p.server.Serve(l)
	return p, os.WriteFile(p.Kubeconfig, []byte(fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: p,
clusters: [{name: p, cluster: {server: "http://%s"}}],
users: [{name: p, user: {}}],
contexts: [{name: p, context: {cluster: p, user: p}}]}`, l.Addr())), 0o600)
}

// Whole reads a request's body before a ReverseProxy forwards it. A server closes the body
// when the answer begins, and a transport that has sent all of it, but not yet seen its end,
// takes that for an error and cuts the answer off: once in 100,000 requests or so.
func Whole(r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	return err
}

// Between puts a handler between Countersign and what the proxy does with each request
// from now on; nil takes it away.
func (p *Proxy) Between(between func(next http.Handler) http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.between = between
}

// Hold holds the first request that matches. Held is closed when it has come;
// Release lets it go on, or lose its way.
func (p *Proxy) Hold(match func(*http.Request) bool) (held <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold, p.held, p.verdict = match, make(chan struct{}), make(chan bool, 1)
	return p.held
}

// Release decides what becomes of the held request.
func (p *Proxy) Release(arrives bool) { p.verdict <- arrives }

func (p *Proxy) pass(r *http.Request) bool {
	p.mu.Lock()
	if p.hold == nil || !p.hold(r) {
		p.mu.Unlock()
		return true
	}
	p.hold = nil
	held, verdict := p.held, p.verdict
	p.mu.Unlock()
	// The body is read before the sender can die with it.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return false
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	close(held)
	return <-verdict
}

// Spent is how long all requests so far took beyond the proxy.
func (p *Proxy) Spent() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spent
}

// Close stops the proxy.
func (p *Proxy) Close() error { return p.server.Close() }
