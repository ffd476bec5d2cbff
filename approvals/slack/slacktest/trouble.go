package slacktest

import (
	"net/http"
	"slices"
	"strconv"
)

// Trouble is how a call of the Web API goes wrong. One of the fields before Done
// says how.
type Trouble struct {
	Status     int    `json:"status"`      // the answer is this HTTP status and no JSON
	RetryAfter int    `json:"retry_after"` // the answer is 429, to come again in so many seconds
	Error      string `json:"error"`       // the answer is an error by this name
	Cut        bool   `json:"cut"`         // the connection ends without an answer
	Hang       bool   `json:"hang"`        // there is no answer until the client gives up
	Garbled    bool   `json:"garbled"`     // the answer is not JSON

	// Done means that the call takes effect first: the message is posted, and
	// the caller is not told.
	Done bool `json:"done"`
}

type trouble struct {
	method string
	left   int
	Trouble
}

// Fail makes the next n calls of method, or of any with "*", go wrong; all of
// them if n is negative. Troubles for the same method wait for each other.
// Calls with a wrong token are refused before they meet trouble.
func (s *Server) Fail(method string, n int, how Trouble) {
	if n == 0 {
		return
	}
	s.change(func() { s.troubles = append(s.troubles, &trouble{method: method, left: n, Trouble: how}) })
}

// Mend ends all trouble, that of Down too.
func (s *Server) Mend() {
	s.change(func() { s.troubles, s.down = nil, false })
}

// Down makes Slack unreachable: open connections end, new ones are cut at once,
// and nobody can click.
func (s *Server) Down(down bool) {
	s.change(func() { s.down = down })
	if down {
		s.Disconnect("")
	}
}

// meets takes the trouble that a call of method meets now. The lock is held.
func (s *Server) meets(method string) Trouble {
	for i, t := range s.troubles {
		if t.method != method && t.method != "*" {
			continue
		}
		if t.left--; t.left == 0 {
			s.troubles = slices.Delete(s.troubles, i, i+1)
		}
		return t.Trouble
	}
	return Trouble{}
}

// answer writes the trouble's answer in place of the true one, and reports
// whether it did.
func (t Trouble) answer(s *Server, w http.ResponseWriter, r *http.Request) bool {
	switch {
	case t.Cut:
		cut(w)
	case t.Hang:
		select {
		case <-r.Context().Done():
		case <-s.done:
		}
		cut(w)
	case t.RetryAfter > 0:
		w.Header().Set("Retry-After", strconv.Itoa(t.RetryAfter))
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = w.Write([]byte(`{"ok":false,"error":"ratelimited"}`))
	case t.Error != "":
		reply(w, failed(t.Error))
	case t.Garbled:
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = w.Write([]byte(`{"ok":true,"channel":"C0`))
	case t.Status != 0:
		w.WriteHeader(t.Status)
		_, _ = w.Write([]byte("<html>this was not supposed to happen</html>"))
	default:
		return false
	}
	return true
}

// cut ends the connection without an answer.
func cut(w http.ResponseWriter) {
	if h, ok := w.(http.Hijacker); ok {
		if c, _, err := h.Hijack(); err == nil {
			_ = c.Close()
		}
	}
}
