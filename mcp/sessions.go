package mcp

import (
	"container/list"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"regexp"
	"sync"
	"time"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"countersign/action"
	"countersign/audit"
	"countersign/gate"
)

// sessionResolver gives mcp-go session ids that belong to one principal: a
// nonce and an HMAC over nonce and principal. Nothing about them is stored.
type sessionResolver struct{ key []byte }

func (r sessionResolver) ResolveSessionIdManager(req *http.Request) server.SessionIdManager {
	if req == nil { // of the sweeper, which checks nothing
		return sessions{key: r.key}
	}
	c, _ := req.Context().Value(callerKey{}).(caller)
	return sessions{key: r.key, principal: c.principal}
}

type sessions struct {
	key       []byte
	principal action.Principal
}

func (s sessions) Generate() string {
	var nonce [16]byte
	rand.Read(nonce[:])
	return base64.RawURLEncoding.EncodeToString(append(nonce[:], sessionMAC(s.key, s.principal, nonce[:])...))
}

func (s sessions) Validate(id string) (terminated bool, err error) {
	if !validSession(s.key, s.principal, id) {
		return false, errors.New("no such session")
	}
	return false, nil
}

func (s sessions) Terminate(id string) (notAllowed bool, err error) {
	_, err = s.Validate(id)
	return false, err
}

func validSession(key []byte, p action.Principal, id string) bool {
	// Strict, or an id could be spelt in four ways, and only one of them be deleted.
	raw, err := base64.RawURLEncoding.Strict().DecodeString(id)
	return err == nil && len(raw) == 32 && hmac.Equal(raw[16:], sessionMAC(key, p, raw[:16]))
}

func sessionMAC(key []byte, p action.Principal, nonce []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(nonce)
	h.Write([]byte(p.Key()))
	return h.Sum(nil)[:16]
}

// deleted are the ids of sessions that their clients ended: they would verify for ever.
// The latest maxStays are kept, until a restart.
type deleted struct {
	mu  sync.Mutex
	ids map[string]bool
	use []string // in the order in which they were deleted
}

func (d *deleted) has(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ids[id]
}

func (d *deleted) add(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ids[id] {
		return
	}
	if len(d.use) >= maxStays {
		delete(d.ids, d.use[0])
		d.use = d.use[1:]
	}
	d.ids[id] = true
	d.use = append(d.use, id)
}

// opened are the sessions of which mcp-go keeps something: what the client said of
// itself, and a queue, 64 KiB and more. It forgets them after a time; whoever opens
// one after the other would fill the memory until then.
type opened struct {
	mu  sync.Mutex
	use []openedSession // in the order in which they were opened
}

type openedSession struct {
	id string
	of caller
}

// maxOpened bounds them. A session that is forgotten can be used on; its later calls
// are on record without the client's name.
const maxOpened = 1000

// add notes a session, and lets mcp-go forget the oldest of too many.
func (o *opened) add(mcp http.Handler, c caller, id string) {
	if id == "" {
		return
	}
	o.mu.Lock()
	var old openedSession
	if o.use = append(o.use, openedSession{id, c}); len(o.use) > maxOpened {
		old, o.use = o.use[0], o.use[1:]
	}
	o.mu.Unlock()
	if old.id == "" {
		return
	}
	// The only way in from outside is the one that clients have.
	ctx := context.WithValue(context.Background(), callerKey{}, old.of)
	r, err := http.NewRequestWithContext(ctx, http.MethodDelete, "/", http.NoBody)
	if err == nil {
		r.Header.Set(headerSession, old.id)
		mcp.ServeHTTP(nobody{}, r)
	}
}

// nobody reads an answer.
type nobody struct{}

func (nobody) Header() http.Header         { return http.Header{} }
func (nobody) WriteHeader(int)             {}
func (nobody) Write(p []byte) (int, error) { return len(p), nil }

// stays are the sessions that the audit log tells of: which calls belong together.
// They are kept in memory; a session that a restart interrupts starts again.
type stays struct {
	mu  sync.Mutex
	by  map[string]*list.Element
	use *list.List     // of *stay, the one that was used longest ago in front
	of  map[string]int // how many each principal has
}

// stay is one session, from its first call to its last.
type stay struct {
	key, id     string
	principal   action.Principal
	source      audit.Source
	first, last time.Time
	calls       int
	recorded    sync.Once
}

// maxStays bounds how many sessions are open at once, and maxOwnStays those of one
// principal: it can name as many as it likes, and must not end those of others.
const (
	maxStays    = 10_000
	maxOwnStays = maxStays / 10
)

// sessionMeta is where a client can say by itself which session a call is of.
const sessionMeta = "countersign/session"

var sessionName = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,64}$`)

// sessionOf says which session a call belongs to: the one that the client names, or
// that of MCP, or else all calls of the same caller without a gap of sessionIdle.
// What a client says begins with agent:, so that it cannot be taken for another kind,
// and ends with who says it, so that nobody's calls are shown or replayed as another's.
func (s *Server) sessionOf(ctx context.Context, c caller, meta *mcpgo.Meta) string {
	if meta != nil {
		if name, ok := meta.AdditionalFields[sessionMeta].(string); ok && sessionName.MatchString(name) {
			whose := sha256.Sum256([]byte(stayKey(c.principal, "")))
			return s.stay(c, "agent:"+audit.MaskText(name)+"@"+hex.EncodeToString(whose[:4]))
		}
	}
	if session := server.ClientSessionFromContext(ctx); session != nil && session.SessionID() != "" {
		id := session.SessionID()
		if c.source.Transport == "stdio" {
			id = s.stdioID
		}
		return s.stay(c, id)
	}
	return s.stay(c, "")
}

// stay counts a call to a session, which its first call starts. Without an id it is
// that of calls without a gap, and gets one.
func (s *Server) stay(c caller, id string) string {
	key := stayKey(c.principal, id)
	now := time.Now()
	s.stays.mu.Lock()
	var crowdedOut []gate.Session
	element := s.stays.by[key]
	if element == nil {
		if id == "" {
			id = "gap:" + rand.Text()
		}
		whose, own := c.principal.Key(), s.stays.of[c.principal.Key()] >= maxOwnStays
		if own || s.stays.use.Len() >= maxStays {
			out := s.stays.use.Front()
			for own && out.Value.(*stay).principal.Key() != whose {
				out = out.Next()
			}
			crowdedOut = append(crowdedOut, s.stays.end(out, "crowded_out"))
		}
		s.stays.of[whose]++
		element = s.stays.use.PushBack(&stay{key: key, id: id, principal: c.principal, source: c.source, first: now})
		s.stays.by[key] = element
	}
	s.stays.use.MoveToBack(element)
	one := element.Value.(*stay)
	one.last = now
	one.calls++
	s.stays.mu.Unlock()

	one.recorded.Do(func() { s.Gate.SessionStarted(c.principal, c.source, one.id) })
	s.Gate.SessionsEnded(crowdedOut)
	return one.id
}

func stayKey(p action.Principal, id string) string {
	return p.Key() + "\n" + p.Client + "\n" + p.OnBehalfOf + "\n" + id
}

// end forgets a session; the caller holds the lock.
func (s *stays) end(element *list.Element, reason string) gate.Session {
	one := s.use.Remove(element).(*stay)
	delete(s.by, one.key)
	if whose := one.principal.Key(); s.of[whose] > 1 {
		s.of[whose]--
	} else {
		delete(s.of, whose)
	}
	return gate.Session{ID: one.id, Principal: one.principal, End: audit.SessionEnd{Reason: reason, Calls: one.calls}, First: one.first, Last: one.last}
}

// endSession records that a client has deleted its session.
func (s *Server) endSession(p action.Principal, id string) {
	s.stays.mu.Lock()
	var ended []gate.Session
	if element := s.stays.by[stayKey(p, id)]; element != nil {
		ended = append(ended, s.stays.end(element, "deleted"))
	}
	s.stays.mu.Unlock()
	s.Gate.SessionsEnded(ended)
}

// endSessions ends those that were last used before a time.
func (s *Server) endSessions(before time.Time, reason string) {
	var ended []gate.Session
	s.stays.mu.Lock()
	for e := s.stays.use.Front(); e != nil && e.Value.(*stay).last.Before(before); e = s.stays.use.Front() {
		ended = append(ended, s.stays.end(e, reason))
	}
	s.stays.mu.Unlock()
	s.Gate.SessionsEnded(ended)
}

// WatchSessions ends sessions that nobody uses any more, until ctx ends; then all.
func (s *Server) WatchSessions(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.endSessions(now.Add(-sessionIdle), "idle")
		case <-ctx.Done():
			s.endSessions(time.Now().Add(time.Hour), "stopped")
			return
		}
	}
}
