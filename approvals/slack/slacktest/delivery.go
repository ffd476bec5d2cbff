package slacktest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// ackWithin is how long an app has to acknowledge an interaction.
const ackWithin = 3 * time.Second

// Slack keeps to ten connections and drops acknowledgements of 20 KB.
const (
	maxConns = 10
	maxAck   = 20 << 10
)

// Delivery is how one interaction went to the app.
type Delivery struct {
	Payload json.RawMessage `json:"-"`     // as sent
	Acked   bool            `json:"acked"` // within three seconds
	Status  int             `json:"status,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"` // what the acknowledgement said, if anything
	Took    time.Duration   `json:"took"`
	// Saw is what the person was shown at once: nothing, or a warning that the app
	// does not answer, or the errors of a form. Messages and modals that the app
	// sends are read from the Server.
	Saw    string      `json:"saw,omitempty"`
	Why    string      `json:"why,omitempty"`    // it was not acknowledged
	Repeat []*Delivery `json:"repeat,omitempty"` // of Twice and Again

	tell func() *Delivery
}

// Replay delivers the same envelope, or the same signed request, once more, now.
func (d *Delivery) Replay() *Delivery { return deliver(d.Payload, d.tell) }

func deliver(payload []byte, tell func() *Delivery) *Delivery {
	d := tell()
	d.Payload, d.tell = payload, tell
	if !d.Acked {
		d.Saw = sawTrouble
	}
	return d
}

// Option changes how an act is delivered.
type Option func(*delivery)

type delivery struct {
	delay     time.Duration
	twice     bool
	again     bool
	signature bool // wrong
	age       time.Duration
	version   int
	edits     []func(map[string]any)
}

// Delayed holds the delivery back: the person clicked d ago when the app is told.
func Delayed(d time.Duration) Option { return func(o *delivery) { o.delay = d } }

// Twice delivers the same envelope, or the same signed request, two times.
func Twice() Option { return func(o *delivery) { o.twice = true } }

// Again delivers the same payload under a new envelope, or signed anew, after the first.
func Again() Option { return func(o *delivery) { o.again = true } }

// WrongSignature signs an HTTP delivery with another secret.
func WrongSignature() Option { return func(o *delivery) { o.signature = true } }

// Stale dates an HTTP delivery's signature so long ago.
func Stale(age time.Duration) Option { return func(o *delivery) { o.age = age } }

// FromTeam makes the payload come from another workspace.
func FromTeam(id string) Option {
	return Edited(func(p map[string]any) {
		p["team"] = map[string]any{"id": id, "domain": "elsewhere"}
		if u, ok := p["user"].(map[string]any); ok {
			u["team_id"] = id
		}
	})
}

// FromApp makes the payload come from another app.
func FromApp(id string) Option {
	return Edited(func(p map[string]any) { p["api_app_id"] = id })
}

// Edited lets the test change the payload before it is sent.
func Edited(f func(payload map[string]any)) Option {
	return func(o *delivery) { o.edits = append(o.edits, f) }
}

// Version makes a person click on the message as it was before its edits, 0 being
// as it was first posted: a client that has not been told.
func Version(n int) Option { return func(o *delivery) { o.version = n } }

// errNobody says that no app was there to be told.
var errNobody = errors.New("the app has no connection")

// Deliver sends a payload of the test's own, valid or not.
func (s *Server) Deliver(payload []byte, options ...Option) *Delivery {
	return s.carry(payload, gather(options))
}

func gather(options []Option) *delivery {
	o := &delivery{version: -1}
	for _, f := range options {
		f(o)
	}
	return o
}

// send delivers what o describes. The lock is not held.
func (s *Server) send(payload map[string]any, o *delivery) (*Delivery, error) {
	// Through JSON once, so that edits do not reach the messages that it shows.
	raw, err := json.Marshal(payload)
	if err != nil {
		return nil, fmt.Errorf("encoding payload: %w", err)
	}
	if len(o.edits) > 0 {
		var own map[string]any
		if err := json.Unmarshal(raw, &own); err != nil {
			return nil, fmt.Errorf("decoding payload: %w", err)
		}
		for _, f := range o.edits {
			f(own)
		}
		if raw, err = json.Marshal(own); err != nil {
			return nil, fmt.Errorf("encoding edited payload: %w", err)
		}
	}
	return s.carry(raw, o), nil
}

func (s *Server) carry(payload []byte, o *delivery) *Delivery {
	if o.delay > 0 {
		select {
		case <-time.After(o.delay):
		case <-s.done:
		}
	}
	s.mu.Lock()
	to, down := s.interactions, s.down
	s.mu.Unlock()
	if down {
		return deliver(payload, func() *Delivery { return &Delivery{Why: "slack is down"} })
	}
	var tell func() *Delivery
	if to == "" {
		id := randomHex(16)
		tell = func() *Delivery { return s.overSocket(id, payload) }
	} else {
		r := s.signed(payload, o)
		tell = func() *Delivery { return r.post(to) }
	}
	d := deliver(payload, tell)
	if o.twice {
		d.Repeat = append(d.Repeat, deliver(payload, tell))
	}
	if o.again {
		fresh := *o
		fresh.again, fresh.twice, fresh.delay = false, false, 0
		d.Repeat = append(d.Repeat, s.carry(payload, &fresh))
	}
	return d
}

const sawTrouble = "This app is not responding."

// signedRequest is an interaction as it goes over HTTP.
type signedRequest struct {
	body   []byte
	header http.Header
}

// Sign returns the X-Slack-Signature of a body sent at a Unix time.
func (s *Server) Sign(timestamp int64, body []byte) string {
	return sign(s.SigningSecret, timestamp, body)
}

func sign(secret string, timestamp int64, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = fmt.Fprintf(mac, "v0:%d:%s", timestamp, body)
	return "v0=" + hex.EncodeToString(mac.Sum(nil))
}

func (s *Server) signed(payload []byte, o *delivery) signedRequest {
	body := []byte(url.Values{"payload": {string(payload)}}.Encode())
	secret, at := s.SigningSecret, time.Now().Add(-o.age).Unix()
	if o.signature {
		secret = "another" + secret
	}
	return signedRequest{body, http.Header{
		"Content-Type":              {"application/x-www-form-urlencoded"},
		"User-Agent":                {"Slackbot 1.0 (+https://api.slack.com/robots)"},
		"X-Slack-Request-Timestamp": {strconv.FormatInt(at, 10)},
		"X-Slack-Signature":         {sign(secret, at, body)},
	}}
}

// poster waits for an acknowledgement as long as Slack does and follows no redirect.
var poster = &http.Client{
	Timeout:       ackWithin,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableKeepAlives: true},
}

func (r signedRequest) post(to string) *Delivery {
	d := &Delivery{}
	began := time.Now()
	defer func() { d.Took = time.Since(began) }()
	request, err := http.NewRequest(http.MethodPost, to, bytes.NewReader(r.body))
	if err != nil {
		d.Why = err.Error()
		return d
	}
	request.Header = r.header.Clone()
	response, err := poster.Do(request)
	if err != nil {
		d.Why = err.Error()
		return d
	}
	defer func() { _ = response.Body.Close() }()
	d.Status = response.StatusCode
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	d.Acked = err == nil && response.StatusCode == http.StatusOK
	if !d.Acked {
		d.Why = fmt.Sprintf("%s: %.200q", response.Status, body)
	}
	if len(bytes.TrimSpace(body)) > 0 && json.Valid(body) {
		d.Body = body
	}
	return d
}

// conn is one Socket Mode connection.
type conn struct {
	ws   *websocket.Conn
	send sync.Mutex // gorilla has one writer at a time
}

func (c *conn) write(v any) error {
	c.send.Lock()
	defer c.send.Unlock()
	_ = c.ws.SetWriteDeadline(time.Now().Add(ackWithin))
	return c.ws.WriteJSON(v)
}

// overSocket gives an envelope to one of the connections in turn, as Slack does,
// and waits for whichever answers with its id.
func (s *Server) overSocket(id string, payload []byte) *Delivery {
	d := &Delivery{Why: errNobody.Error()}
	ack := make(chan []byte, 1)
	s.mu.Lock()
	if len(s.conns) == 0 {
		s.mu.Unlock()
		return d
	}
	c := s.conns[s.next%len(s.conns)]
	s.next++
	s.waiting[id] = ack
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, id)
		s.mu.Unlock()
	}()
	began := time.Now()
	frame := json.RawMessage(payload)
	if !json.Valid(payload) {
		frame, _ = json.Marshal(string(payload))
	}
	if c.write(answer{"envelope_id": id, "payload": frame, "type": "interactive", "accepts_response_payload": true}) != nil {
		d.Why = "the connection ended"
		return d
	}
	select {
	case body := <-ack:
		d.Acked, d.Why = true, ""
		if len(body) > 0 && string(body) != "null" {
			d.Body = body
		}
	case <-time.After(ackWithin):
		d.Why = "no acknowledgement in three seconds"
	case <-s.done:
		d.Why = "the server was closed"
	}
	d.Took = time.Since(began)
	return d
}

func (s *Server) serveWS(w http.ResponseWriter, r *http.Request) {
	ticket := r.URL.Query().Get("ticket")
	s.mu.Lock()
	down, known := s.down, s.tickets[ticket]
	delete(s.tickets, ticket) // each url is good for one connection
	s.mu.Unlock()
	switch {
	case down:
		cut(w)
		return
	case !known:
		http.Error(w, "invalid ticket", http.StatusUnauthorized)
		return
	}
	up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = ws.Close() }()
	ws.SetReadLimit(maxBody)
	c := &conn{ws: ws}

	s.mu.Lock()
	select {
	case <-s.done:
		s.mu.Unlock()
		return
	default:
	}
	if len(s.conns) == maxConns {
		s.mu.Unlock()
		_ = c.write(s.disconnect("too_many_websockets"))
		return
	}
	n := len(s.conns) + 1
	s.mu.Unlock()
	// Before the connection can be given an envelope, for hello comes first.
	if c.write(answer{"type": "hello", "num_connections": n,
		"connection_info": answer{"app_id": s.AppID},
		"debug_info":      answer{"host": "slacktest", "build_number": 1, "approximate_connection_time": 18060}}) != nil {
		return
	}
	s.mu.Lock()
	select {
	case <-s.done: // Close has not seen this connection
		s.mu.Unlock()
		return
	default:
	}
	s.conns = append(s.conns, c)
	s.wake()
	s.mu.Unlock()
	left := make(chan struct{})
	defer func() {
		close(left)
		s.change(func() { s.conns = slices.DeleteFunc(s.conns, func(o *conn) bool { return o == c }) })
	}()
	s.work.Go(func() { c.ping(left) })
	for {
		_, frame, err := ws.ReadMessage()
		if err != nil {
			return
		}
		var ack struct {
			EnvelopeID string          `json:"envelope_id"`
			Payload    json.RawMessage `json:"payload"`
		}
		if len(frame) >= maxAck || json.Unmarshal(frame, &ack) != nil {
			continue
		}
		s.mu.Lock()
		waiting := s.waiting[ack.EnvelopeID]
		s.mu.Unlock()
		if waiting != nil {
			select {
			case waiting <- ack.Payload:
			default: // acknowledged already
			}
		}
	}
}

// ping shows the client that the connection is alive; without pings it reconnects.
func (c *conn) ping(left <-chan struct{}) {
	t := time.NewTicker(2 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-left:
			return
		case <-t.C:
			_ = c.ws.WriteControl(websocket.PingMessage, []byte("Ping from slacktest"), time.Now().Add(time.Second))
		}
	}
}

func (s *Server) disconnect(reason string) answer {
	return answer{"type": "disconnect", "reason": reason, "debug_info": answer{"host": "slacktest"}}
}

// Connections returns how many Socket Mode connections are open.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Disconnect tells every connection to reconnect, for a reason such as "warning"
// or "refresh_requested"; for all but the warning it then ends them. With no reason
// they are cut without a word.
func (s *Server) Disconnect(reason string) {
	s.mu.Lock()
	conns := slices.Clone(s.conns)
	s.mu.Unlock()
	for _, c := range conns {
		if reason != "" {
			_ = c.write(s.disconnect(reason))
		}
		if reason != "warning" {
			_ = c.ws.Close()
		}
	}
}

// SendFrame sends a frame of the test's own, JSON or not, over one connection.
func (s *Server) SendFrame(frame []byte) error {
	s.mu.Lock()
	if len(s.conns) == 0 {
		s.mu.Unlock()
		return errNobody
	}
	c := s.conns[s.next%len(s.conns)]
	s.next++
	s.mu.Unlock()
	c.send.Lock()
	defer c.send.Unlock()
	_ = c.ws.SetWriteDeadline(time.Now().Add(ackWithin))
	return c.ws.WriteMessage(websocket.TextMessage, frame)
}
