package mcp

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// healthEvery is how long an answer about the server's health is good for, and
// healthWithin how long finding it may take.
const (
	healthEvery  = 3 * time.Second
	healthWithin = 3 * time.Second
)

func healthz(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }

// readyz says whether the server can serve. Whoever can reach it may ask, under any
// Host: a kubelet asks the pod's address, without a token.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	ready, text := s.health(r.Context())
	if s.running.stopped() {
		ready, text = false, "stopping\n"
	}
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprint(w, text)
}

// health looks at most every healthEvery, one at a time.
func (s *Server) health(ctx context.Context) (bool, string) {
	s.looking.Lock()
	defer s.looking.Unlock()
	if time.Since(s.looked) >= healthEvery {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthWithin) // others get this answer too
		defer cancel()
		s.ready, s.readyText = s.Ready(ctx)
		s.looked = time.Now()
	}
	return s.ready, s.readyText
}
