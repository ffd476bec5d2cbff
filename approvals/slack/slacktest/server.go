package slacktest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Fixed identity of the workspace and the app. The tokens and the signing secret
// are made anew by each [Start].
const (
	teamID     = "T0COUNTER1"
	teamDomain = "slacktest"
	appID      = "A0COUNTER1"
	botUserID  = "U0COUNTER1"
	botID      = "B0COUNTER1"
	botName    = "countersign"
)

// What the server keeps is bounded, so that a runaway client fails and not the machine.
const (
	maxBody     = 1 << 20
	maxCalls    = 4096
	maxMessages = 4096 // in one channel
	maxVersions = 64   // of one message
)

// Server is one workspace with one app installed in it.
type Server struct {
	URL           string // of the Web API, ending in "/api/": for slack.OptionAPIURL
	ControlURL    string // of the control API, ending in "/control/"
	TeamID        string
	AppID         string
	BotUserID     string
	BotID         string
	BotToken      string
	AppToken      string
	SigningSecret string

	base string // "http://host:port"
	http *http.Server
	done chan struct{}
	work sync.WaitGroup

	mu           sync.Mutex
	changed      chan struct{} // closed at the next change
	down         bool
	interactions string
	lastTS       int64 // microseconds
	serial       int
	users        map[string]User
	groups       map[string][]string
	channels     map[string]*channel
	lacking      []string // scopes taken away
	calls        []Call
	troubles     []*trouble
	triggers     map[string]*trigger
	stacks       map[string][]*View // by user, the one in front last
	conns        []*conn
	tickets      map[string]bool
	waiting      map[string]chan []byte // by envelope id
	next         int                    // of conns, which gets the next envelope
}

// User is a member of the workspace, or a stranger to it. The zero value beyond
// ID is an ordinary member with a confirmed e-mail address.
type User struct {
	ID                string `json:"id"`
	Name              string `json:"name"` // handle; the ID in lower case if empty
	RealName          string `json:"real_name"`
	DisplayName       string `json:"display_name"`
	Email             string `json:"email"`
	TeamID            string `json:"team_id"`       // the server's if empty
	EnterpriseID      string `json:"enterprise_id"` // no enterprise_user if empty
	Deleted           bool   `json:"deleted"`
	IsBot             bool   `json:"is_bot"`
	IsRestricted      bool   `json:"is_restricted"`
	IsUltraRestricted bool   `json:"is_ultra_restricted"`
	IsStranger        bool   `json:"is_stranger"`
	EmailUnconfirmed  bool   `json:"email_unconfirmed"`
}

// Channel is a place for messages. The zero value beyond ID is a public channel
// with the bot and everybody else in it.
type Channel struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Private  bool     `json:"private"`
	Archived bool     `json:"archived"`
	Without  bool     `json:"without"` // the bot is not a member
	Members  []string `json:"members"` // people in it; everybody if nil
}

type channel struct {
	Channel
	im         string // the person at the other end of a direct message
	messages   []*Message
	ephemerals []Ephemeral
}

// Start serves a workspace at addr, "127.0.0.1:0" for a free port.
func Start(addr string) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	base := "http://" + l.Addr().String()
	s := &Server{
		URL: base + "/api/", ControlURL: base + "/control/",
		TeamID: teamID, AppID: appID, BotUserID: botUserID, BotID: botID,
		BotToken:      "xoxb-test-" + randomHex(12),
		AppToken:      "xapp-test-" + randomHex(12),
		SigningSecret: randomHex(16),
		base:          base,
		done:          make(chan struct{}),
		changed:       make(chan struct{}),
		users:         map[string]User{},
		groups:        map[string][]string{},
		channels:      map[string]*channel{},
		triggers:      map[string]*trigger{},
		stacks:        map[string][]*View{},
		tickets:       map[string]bool{},
		waiting:       map[string]chan []byte{},
	}
	s.AddUser(User{ID: botUserID, Name: botName, RealName: botName, IsBot: true})
	mux := http.NewServeMux()
	mux.HandleFunc("/api/{method}", s.serveAPI)
	mux.HandleFunc("/ws", s.serveWS)
	mux.HandleFunc("/control/{act}", s.serveControl)
	s.http = &http.Server{Handler: s.track(mux), ReadHeaderTimeout: 10 * time.Second}
	s.work.Go(func() { _ = s.http.Serve(l) })
	return s, nil
}

// Close ends every connection and waits for the server's goroutines.
func (s *Server) Close() {
	s.mu.Lock()
	select {
	case <-s.done:
		s.mu.Unlock()
		return
	default:
	}
	close(s.done)
	conns := slices.Clone(s.conns)
	s.mu.Unlock()
	_ = s.http.Close()
	for _, c := range conns {
		_ = c.ws.Close()
	}
	s.work.Wait()
}

// track lets Close wait for the handlers, those of WebSockets too.
func (s *Server) track(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		select {
		case <-s.done:
			s.mu.Unlock()
			cut(w)
			return
		default:
		}
		s.work.Add(1)
		s.mu.Unlock()
		defer s.work.Done()
		h.ServeHTTP(w, r)
	})
}

// AddUser adds a person, or replaces the one with the same ID.
func (s *Server) AddUser(u User) {
	if u.Name == "" {
		u.Name = strings.ToLower(u.ID)
	}
	if u.TeamID == "" {
		u.TeamID = s.TeamID
	}
	s.change(func() { s.users[u.ID] = u })
}

// AddChannel adds a channel, or changes the one with the same ID and keeps its messages.
func (s *Server) AddChannel(c Channel) {
	s.change(func() {
		if old := s.channels[c.ID]; old != nil {
			old.Channel = c
			return
		}
		s.channels[c.ID] = &channel{Channel: c}
	})
}

// SetGroup says who is in a user group. With no members the group is empty, not absent.
func (s *Server) SetGroup(id string, members ...string) {
	s.change(func() { s.groups[id] = append([]string{}, members...) })
}

// RemoveGroup removes a user group.
func (s *Server) RemoveGroup(id string) {
	s.change(func() { delete(s.groups, id) })
}

// RevokeScope takes a scope from the bot token: calls that need it get
// missing_scope, and without users:read.email no profile has an address.
func (s *Server) RevokeScope(scope string) {
	s.change(func() { s.lacking = append(s.lacking, scope) })
}

// SetInteractions makes interactions go as signed HTTP requests to url, as with
// Socket Mode switched off. An empty url switches Socket Mode on again.
func (s *Server) SetInteractions(url string) {
	s.change(func() { s.interactions = url })
}

// Await calls ok now and after every change in the workspace, until it is true
// or the time is up, and returns what it said last.
func (s *Server) Await(timeout time.Duration, ok func() bool) bool {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if ok() {
			return true
		}
		select {
		case <-changed:
		case <-deadline.C:
			return ok()
		case <-s.done:
			return ok()
		}
	}
}

func (s *Server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.wake()
}

// wake tells everybody who awaits a change. The lock is held.
func (s *Server) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// ts makes a message's timestamp, which is its id as well: unlike the clock it
// never repeats. The lock is held.
func (s *Server) ts() string {
	s.lastTS = max(s.lastTS+1, time.Now().UnixMicro())
	return fmt.Sprintf("%d.%06d", s.lastTS/1e6, s.lastTS%1e6)
}

// id makes an id with a prefix as Slack has them. The lock is held.
func (s *Server) id(prefix string) string {
	s.serial++
	return fmt.Sprintf("%s%09d", prefix, s.serial)
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return hex.EncodeToString(b)
}
