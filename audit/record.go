package audit

import (
	"io"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"countersign/action"
)

// Version is the value of a Record's "v". It changes when the meaning of a
// field does.
const Version = 1

// The types of Record.
const (
	LogOpened         = "log.opened"
	LoginRefused      = "login.refused"
	CallRefused       = "call.refused" // malformed, or of an unknown tool
	ToolIntent        = "tool.intent"
	ToolPlanned       = "tool.planned" // of a call that had to read before it could be planned
	PolicyDecided     = "policy.decided"
	ApprovalRequested = "approval.requested"
	ApprovalVoted     = "approval.voted"
	ApprovalDecided   = "approval.decided" // approved, rejected, expired, cancelled, stale
	ExecStarted       = "exec.started"
	ExecOutcome       = "exec.outcome"
	ExecUnknown       = "exec.unknown"
	ExecReconciled    = "exec.reconciled"
	GrantCreated      = "grant.created"
	GrantRevoked      = "grant.revoked"
	LockAdded         = "lock.added"
	LockRemoved       = "lock.removed"
	ConfigChanged     = "config.changed"
	SessionStarted    = "session.started"
	SessionEnded      = "session.ended"
	RateLimited       = "rate.limited"   // more requests than one caller may send
	LogCheckpoint     = "log.checkpoint" // a checkpoint was put where this server cannot take it back
	LogPruned         = "log.pruned"     // what was too old was taken out
	ClusterSeen       = "cluster.seen"   // which cluster stands behind a name
)

// The outcomes of a Record.
const (
	Success = "success"
	Failure = "failure"
	Unknown = "unknown"
	Pending = "pending"
	Denied  = "denied"
)

// Record is one line of the audit log. Its JSON encoding, byte for byte, is
// what is stored and exported. Seq is given by the store; everything else by
// whoever writes the record.
type Record struct {
	V   int    `json:"v"`
	Seq uint64 `json:"seq"`
	// ID is a UUIDv7, by which a writer finds out whether a record was stored.
	ID   string    `json:"id"`
	Time time.Time `json:"time"`
	Type string    `json:"type"`
	// Op is the Operation that the record belongs to.
	Op        string            `json:"op,omitempty"`
	Outcome   string            `json:"outcome,omitempty"`
	Principal *action.Principal `json:"principal,omitempty"`
	Session   string            `json:"session,omitempty"`
	Source    *Source           `json:"source,omitempty"`
	Tool      *Tool             `json:"tool,omitempty"`
	Actions   []Action          `json:"actions,omitempty"`
	// MoreActions counts those that did not fit.
	MoreActions int       `json:"more_actions,omitempty"`
	Policy      *Policy   `json:"policy,omitempty"`
	Approval    *Approval `json:"approval,omitempty"`
	Payload     *Payload  `json:"payload,omitempty"`
	Error       *Error    `json:"error,omitempty"`
	// Evidence is what reconciliation saw, on exec.reconciled.
	Evidence *Evidence `json:"evidence,omitempty"`
	// Checkpoint is what was anchored, on log.checkpoint.
	Checkpoint *Anchored `json:"checkpoint,omitempty"`
	// Pruned is what was taken out, on log.pruned.
	Pruned *Pruned `json:"pruned,omitempty"`
	// Cluster is which one was found, on cluster.seen.
	Cluster *Cluster `json:"cluster,omitempty"`
	// End is how a session ended, on session.ended.
	End *SessionEnd `json:"end,omitempty"`
	// Imported is set on a record that the log could not take in its time, and that
	// somebody has added from the emergency file since.
	Imported *Imported `json:"imported,omitempty"`
	// Node is the host name of the server that wrote the record.
	Node string `json:"node,omitempty"`
	// DurationMS is how long the recorded step took.
	DurationMS int64 `json:"duration_ms,omitempty"`
}

// Source is where a call came from.
type Source struct {
	IP        string `json:"ip,omitempty"`
	Transport string `json:"transport"`       // http, stdio or slack
	Agent     string `json:"agent,omitempty"` // what the client calls itself; not verified
}

// Tool is the tool that was called, with its arguments masked.
type Tool struct {
	Name string         `json:"name"`
	Args map[string]any `json:"args,omitempty"`
}

// Action is one Kubernetes API request as the log tells it.
type Action struct {
	Cluster     string `json:"cluster"`
	Verb        string `json:"verb"`
	Resource    string `json:"resource"`
	Subresource string `json:"subresource,omitempty"`
	// Patch is what the body of a patch means: apply, merge, strategic or json.
	Patch           string `json:"patch,omitempty"`
	Namespace       string `json:"namespace,omitempty"`
	Name            string `json:"name,omitempty"`
	UID             string `json:"uid,omitempty"`
	ResourceVersion string `json:"rv_before,omitempty"`
	ResultVersion   string `json:"rv_after,omitempty"`
	// AuditID is the Audit-ID header of the request, which the API server's
	// own audit log repeats as auditID.
	AuditID string `json:"audit_id,omitempty"`
	Code    int    `json:"code,omitempty"`
}

// String is the request in a few words.
func (a Action) String() string {
	text := a.Verb + " " + a.Resource
	if a.Subresource != "" {
		text += "/" + a.Subresource
	}
	switch {
	case a.Namespace != "" && a.Name != "":
		text += " " + a.Namespace + "/" + a.Name
	case a.Namespace != "":
		text += " in " + a.Namespace
	case a.Name != "":
		text += " " + a.Name
	}
	return text
}

// Policy is what policy said.
type Policy struct {
	Digest   string   `json:"digest"`
	Decision string   `json:"decision,omitempty"`
	Rules    []string `json:"rules,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	// Risks are what the preview showed that nobody should overlook.
	Risks []string `json:"risks,omitempty"`
	// Shadow is what rules in mode shadow would have made of it, where that differs.
	Shadow *Shadow `json:"shadow,omitempty"`
}

// Shadow is a decision that was not enforced.
type Shadow struct {
	Decision string   `json:"decision,omitempty"`
	Rules    []string `json:"rules,omitempty"`
	Reason   string   `json:"reason,omitempty"`
}

// Approval is the human part.
type Approval struct {
	State  string   `json:"state,omitempty"`
	By     []string `json:"by,omitempty"`
	Reason string   `json:"reason,omitempty"`
	// Vote is what a person answered, approve or reject, also where it did not
	// count; Via is where, and Sets are the approver sets it was in then.
	Vote string   `json:"vote,omitempty"`
	Via  string   `json:"via,omitempty"`
	Sets []string `json:"sets,omitempty"`
	// Needs is what was demanded, Expires until when, and Channels where it was asked.
	Needs         []string  `json:"needs,omitempty"`
	Expires       time.Time `json:"expires,omitzero"`
	Channels      []string  `json:"channels,omitempty"`
	PlanDigest    string    `json:"plan_digest,omitempty"`
	PreviewDigest string    `json:"diff_digest,omitempty"`
	// Supersedes is the stale operation that this one asks again for.
	Supersedes string `json:"supersedes,omitempty"`
	// Kind says that a vote was for this kind of change, not for this one alone.
	Kind bool `json:"kind,omitempty"`
	// Grant is the consent to a kind of change that was given, used or taken back;
	// Fields are what it lets be set.
	Grant  string   `json:"grant,omitempty"`
	Fields []string `json:"fields,omitempty"`
	// Lock is the lock that was set or removed, or that withdrew, stopped or cut off
	// the operation.
	Lock string `json:"lock,omitempty"`
}

// Payload commits to bytes that are stored beside the record.
type Payload struct {
	SHA256 string `json:"sha256"` // hex
	Bytes  int    `json:"bytes"`
	// Sealed is, in hex, the HMAC-SHA256 of what the payload was before it was
	// masked, where that is kept for auditors. The HMAC's key lies in the sealed
	// payload: a plain hash would let everybody try out guesses.
	Sealed string `json:"sealed,omitempty"`
	// SealedSHA256 is of the sealed payload as it is stored, in hex, so that everybody
	// can see that it is still the same.
	SealedSHA256 string `json:"sealed_sha256,omitempty"`
}

// Anchored is a checkpoint and where it was put.
type Anchored struct {
	Size uint64 `json:"size"`
	// Note is the checkpoint with its signatures.
	Note    string   `json:"note"`
	Anchors []string `json:"anchors,omitempty"`
	Failed  []string `json:"failed,omitempty"`
}

// Pruned is what retention took out of a log: all payloads before one record and
// all records before another. Their hashes stay.
type Pruned struct {
	PayloadsBefore uint64 `json:"payloads_before,omitempty"` // seq
	RecordsBefore  uint64 `json:"records_before,omitempty"`  // seq
	// Edge are the hashes that stand for the records that are gone, base64, so that
	// what is left can be checked against a checkpoint: the roots of the perfect
	// subtrees of a tree of RecordsBefore-1 leaves, the largest first.
	Edge []tlog.Hash `json:"edge,omitempty"`
}

// Error is what went wrong. Its message is masked like everything else.
type Error struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// SessionEnd is how a session ended. The record's duration is that from its first
// call to its last.
type SessionEnd struct {
	Reason string `json:"reason"` // idle, deleted, stopped or crowded_out
	Calls  int    `json:"calls"`
}

// Cluster says which cluster a name stands for.
type Cluster struct {
	Name string `json:"name"`
	// Server is the host and port of its API server.
	Server string `json:"server"`
	// UID is that of its namespace kube-system, which no other cluster has; empty
	// where the server may not read it.
	UID string `json:"uid,omitempty"`
}

// Live is the payload of exec.started: for each of its Actions the object as it was
// before, masked, null where nothing was there, nothing was looked at, or it is too
// large to be kept.
type Live struct {
	Live []map[string]any `json:"live"`
}

// Imported is who added a record, and when.
type Imported struct {
	By   string    `json:"by"`
	Time time.Time `json:"time"`
}

// Evidence is what a look at the live object after a crash showed.
type Evidence struct {
	Result string `json:"result"` // applied, not_applied or undeterminable
	// Detail says in a sentence what was seen.
	Detail          string `json:"detail"`
	UID             string `json:"uid,omitempty"`
	ResourceVersion string `json:"resource_version,omitempty"`
}

// JSONL returns a function that writes records, byte for byte as stored, one a line.
func JSONL(w io.Writer) func(seq uint64, record []byte) error {
	return func(_ uint64, record []byte) error {
		if _, err := w.Write(record); err != nil {
			return err
		}
		_, err := w.Write([]byte{'\n'})
		return err
	}
}
