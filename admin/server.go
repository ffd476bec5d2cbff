package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"countersign/approvals"
	"countersign/audit"
	"countersign/gate"
	"countersign/policy"
)

// Server answers on the admin socket.
type Server struct {
	Gate  *gate.Gate
	Store gate.Store
	// Audit is the log.
	Audit Audit
	// Import adds the records of an emergency file to the log.
	Import func(ctx context.Context, file []byte, by audit.Imported) (gate.Imported, error)
	// Status says how the server is.
	Status func() Status
	// People says who a local user is, and in which approver sets.
	People *approvals.Directory
	Log    *slog.Logger

	readers chan struct{} // one item for each that reads the log
}

// Status is how a server is.
type Status struct {
	Version string       `json:"version"`
	Policy  PolicyStatus `json:"policy"`
	// Locks are those that hold.
	Locks []approvals.Lock `json:"locks,omitempty"`
	// Slack is nil where it is not configured.
	Slack *SlackStatus `json:"slack,omitempty"`
	// Clusters are how the clusters are, and with what credential each is asked.
	Clusters []ClusterStatus `json:"clusters,omitempty"`
	// Issuers are those whose keys are not known, and why: nobody of theirs can log in.
	Issuers map[string]string `json:"issuers_without_keys,omitempty"`
	// Waiting counts the operations that wait for approval; -1 where it cannot be told.
	Waiting int       `json:"waiting"`
	Log     LogStatus `json:"log"`
	// Anchors are where the log's checkpoints are put.
	Anchors []AnchorStatus `json:"anchors,omitempty"`
	// LastError is what the server last reported as an error; nil when nothing yet.
	LastError *ErrorStatus `json:"last_error,omitempty"`
}

// ClusterStatus is how one cluster is. It names the credential and never shows it.
type ClusterStatus struct {
	Name   string `json:"name"`
	Server string `json:"server"`
	// Credential says what it is, where it is from and when it expires.
	Credential string    `json:"credential"`
	Expires    time.Time `json:"expires,omitzero"`
	// Impersonates says that the cluster sees the caller of each request.
	Impersonates bool `json:"impersonates"`
	// User is who the server itself is there, where the cluster tells.
	User      string `json:"user,omitempty"`
	Reachable bool   `json:"reachable"`
	Error     string `json:"error,omitempty"`
}

// LogStatus is the newest record of the audit log, zero where there is none, and
// whether the log takes more.
type LogStatus struct {
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time,omitzero"`
	// Key is the log's public key.
	Key string `json:"key,omitempty"`
	// Error is why it takes none, and what to do about it.
	Error string `json:"error,omitempty"`
	// Emergency is the path of the emergency file where something is in it.
	Emergency string `json:"emergency,omitempty"`
}

// AnchorStatus is one place where the log's checkpoints are put, and the last one
// that it got since the server started: how many records that covers, and when.
type AnchorStatus struct {
	Name      string    `json:"name"`
	Size      uint64    `json:"size"`
	Time      time.Time `json:"time,omitzero"`
	Error     string    `json:"error,omitempty"` // of the last try; empty once it succeeded
	ErrorTime time.Time `json:"error_time,omitzero"`
}

// ErrorStatus is something that went wrong.
type ErrorStatus struct {
	Time    time.Time `json:"time"`
	Message string    `json:"message"`
}

// PolicyStatus is which policy is in force, and whether what lies in its folder
// is that.
type PolicyStatus struct {
	Folder   string      `json:"folder"`
	Digest   string      `json:"digest"`
	Since    time.Time   `json:"since"`
	Info     policy.Info `json:"info"`
	Warnings []string    `json:"warnings,omitempty"`
	// Error is why what the folder holds now is not in force.
	Error     string    `json:"error,omitempty"`
	ErrorTime time.Time `json:"error_time,omitzero"`
}

// SlackStatus is whether Slack can be reached, and what it has still to be told.
type SlackStatus struct {
	// Connected is false while answers cannot come in.
	Connected bool `json:"connected"`
	// Untold counts the operations that Slack shows otherwise than they are.
	Untold int `json:"untold"`
	// Error is what Slack last failed with, empty once something succeeded.
	Error     string    `json:"error,omitempty"`
	ErrorTime time.Time `json:"error_time,omitzero"`
}

// maxVote bounds the body of a vote.
const maxVote = 64 << 10

// Listen opens the socket. A socket that a dead server left behind is replaced;
// one on which a server answers is not.
func Listen(path string) (net.Listener, error) {
	if len(path) > 100 { // sun_path has 104 to 108 bytes
		return nil, fmt.Errorf("opening admin socket %s: the path is longer than the system takes; set adminSocket to a shorter one", path)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("opening admin socket %s: a server is answering on it already", path)
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("opening admin socket %s: there is something else under this name; set adminSocket to another", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening admin socket: %w", err)
	}
	old := syscall.Umask(0o177) // so that it is never open to others, not even between two calls
	defer syscall.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("opening admin socket: %w", err)
	}
	return l, nil
}

type peerKey struct{}

// HTTP returns the server for a listener of Listen.
func (s *Server) HTTP() *http.Server {
	s.readers = make(chan struct{}, maxReaders)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/operations", s.list)
	mux.HandleFunc("GET /v1/operations/{id}", s.show)
	mux.HandleFunc("POST /v1/operations/{id}/vote", s.vote)
	mux.HandleFunc("GET /v1/grants", s.grants)
	mux.HandleFunc("POST /v1/grants/{id}/revoke", s.revoke)
	mux.HandleFunc("GET /v1/locks", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Gate.Locks()) })
	mux.HandleFunc("POST /v1/locks", s.lock)
	mux.HandleFunc("DELETE /v1/locks/{id}", s.unlock)
	mux.HandleFunc("GET /v1/records", s.records)
	mux.HandleFunc("POST /v1/verify", s.verify)
	mux.HandleFunc("GET /v1/payloads/{seq}", func(w http.ResponseWriter, r *http.Request) { s.payload(w, r, s.Audit.Payload) })
	mux.HandleFunc("GET /v1/payloads/{seq}/sealed", func(w http.ResponseWriter, r *http.Request) { s.payload(w, r, s.Audit.SealedPayload) })
	mux.HandleFunc("GET /v1/checkpoint", s.checkpoint)
	mux.HandleFunc("GET /v1/hashes", s.hashes)
	mux.HandleFunc("POST /v1/import", s.importRecords)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Status()) })
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			uid, err := peer(conn)
			if err != nil {
				s.Log.Error("asking who is at the admin socket", "err", err)
				return ctx
			}
			return context.WithValue(ctx, peerKey{}, uid)
		},
	}
}

// person is who the kernel says is asking.
func (s *Server) person(ctx context.Context) (approvals.Person, error) {
	uid, ok := ctx.Value(peerKey{}).(uint32)
	if !ok {
		return approvals.Person{}, errors.New("this system does not say who is at the other end of the socket, so nobody can vote here")
	}
	id := strconv.FormatUint(uint64(uid), 10)
	name := "uid " + id
	if u, err := user.LookupId(id); err == nil {
		name = u.Username
	}
	p := s.People.Person("local:"+id, name, []string{"local:" + name, "local:*"})
	p.Via = "admin socket"
	return p, nil
}

func (s *Server) list(w http.ResponseWriter, _ *http.Request) {
	open, err := s.Store.OpenOperations()
	if err != nil {
		s.fail(w, err)
		return
	}
	slices.SortFunc(open, func(a, b approvals.Operation) int { return a.Created.Compare(b.Created) })
	for i := range open {
		open[i] = withoutBodies(open[i])
	}
	reply(w, open)
}

func (s *Server) show(w http.ResponseWriter, r *http.Request) {
	op, err := s.Store.Operation(r.PathValue("id"))
	if err != nil {
		s.fail(w, err)
		return
	}
	reply(w, withoutBodies(op))
}

// withoutBodies leaves out what would be sent: it can hold secret values, and
// an approver decides on what would change.
func withoutBodies(op approvals.Operation) approvals.Operation {
	op.Plan.Actions = slices.Clone(op.Plan.Actions)
	for i := range op.Plan.Actions {
		op.Plan.Actions[i].Body = nil
	}
	return op
}

func (s *Server) vote(w http.ResponseWriter, r *http.Request) {
	var v approvals.Ballot
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxVote))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&v); err != nil {
		http.Error(w, "reading the vote: "+err.Error(), http.StatusBadRequest)
		return
	}
	person, err := s.person(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	op, err := s.Gate.Vote(r.PathValue("id"), person, v)
	if err != nil {
		s.fail(w, err)
		return
	}
	reply(w, withoutBodies(op))
}

func (s *Server) grants(w http.ResponseWriter, _ *http.Request) {
	grants, err := s.Gate.Grants()
	if err != nil {
		s.fail(w, err)
		return
	}
	slices.SortFunc(grants, func(a, b approvals.Grant) int { return a.Created.Compare(b.Created) })
	reply(w, grants)
}

func (s *Server) lock(w http.ResponseWriter, r *http.Request) {
	var l approvals.Lock
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxVote))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&l); err != nil {
		http.Error(w, "reading the lock: "+err.Error(), http.StatusBadRequest)
		return
	}
	if strings.TrimSpace(l.Reason) == "" || !l.Expires.IsZero() && !l.Expires.After(time.Now()) {
		http.Error(w, "a lock needs a reason, and an end that is still to come or none", http.StatusBadRequest)
		return
	}
	person, err := s.person(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	set, err := s.Gate.Lock(l, person)
	if err != nil {
		s.fail(w, err)
		return
	}
	reply(w, set)
}

func (s *Server) unlock(w http.ResponseWriter, r *http.Request) {
	person, err := s.person(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	l, err := s.Gate.Unlock(r.PathValue("id"), person)
	if err != nil {
		s.fail(w, err)
		return
	}
	reply(w, l)
}

// Revocation is the body of a request to take a grant back.
type Revocation struct {
	Reason string `json:"reason"`
}

func (s *Server) revoke(w http.ResponseWriter, r *http.Request) {
	var why Revocation
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxVote))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&why); err != nil {
		http.Error(w, "reading the reason: "+err.Error(), http.StatusBadRequest)
		return
	}
	person, err := s.person(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	grant, err := s.Gate.RevokeGrant(r.PathValue("id"), person, why.Reason)
	if err != nil {
		s.fail(w, err)
		return
	}
	reply(w, grant)
}

func (s *Server) fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, gate.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, gate.ErrFull):
		status = http.StatusInsufficientStorage
	case errors.Is(err, approvals.ErrNotApprover), errors.Is(err, approvals.ErrSelfApproval), errors.Is(err, approvals.ErrBarred):
		status = http.StatusForbidden
	case errors.Is(err, approvals.ErrNotPending), errors.Is(err, approvals.ErrVoted):
		status = http.StatusConflict
	case errors.Is(err, approvals.ErrReason), errors.Is(err, approvals.ErrNotGrantable):
		status = http.StatusBadRequest
	}
	http.Error(w, err.Error(), status)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}
