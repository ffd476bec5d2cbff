package gate

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/policy"
	"countersign/tools"
)

// record starts a Record with what all of them carry.
func (g *Gate) record(recordType, op string, p action.Principal, session, tool string) audit.Record {
	r := g.serverRecord(recordType)
	r.Op, r.Principal, r.Session = op, &p, session
	if tool != "" {
		r.Tool = &audit.Tool{Name: tool}
	}
	return r
}

// serverRecord starts a Record that no principal caused.
func (g *Gate) serverRecord(recordType string) audit.Record {
	return audit.Record{
		V: audit.Version, ID: newID(), Time: g.Now().UTC(), Type: recordType, Node: g.Node,
		Policy: &audit.Policy{Digest: g.Policy().Digest()},
	}
}

// recordPolicy is a decision as records tell it, with the digest of the set
// that made it.
func recordPolicy(d policy.Decision) *audit.Policy {
	p := &audit.Policy{Digest: d.Digest, Decision: string(d.Effect), Rules: d.Rules, Reason: d.Reason, Risks: d.Risks}
	if s := d.Shadow; s != nil {
		p.Shadow = &audit.Shadow{Decision: string(s.Effect), Rules: s.Rules, Reason: s.Reason}
	}
	return p
}

// split makes several records of one that tells of too many Actions for a leaf. The
// first has the payload.
func split(entries []Entry) []Entry {
	if !slices.ContainsFunc(entries, func(e Entry) bool { return len(e.Record.Actions) > audit.MaxActions }) {
		return entries
	}
	var out []Entry
	for _, e := range entries {
		for i, r := range audit.Split(e.Record, newID) {
			if i == 0 {
				out = append(out, Entry{r, e.Payload, e.Sealed})
			} else {
				out = append(out, Entry{Record: r})
			}
		}
	}
	return out
}

// withPayload stores data beside the record and commits to it.
func withPayload(r audit.Record, v any) Entry {
	data, err := json.Marshal(v)
	if err != nil {
		return Entry{Record: r}
	}
	sum := sha256.Sum256(data)
	r.Payload = &audit.Payload{SHA256: hex.EncodeToString(sum[:]), Bytes: len(data)}
	return Entry{Record: r, Payload: data}
}

// sealed keeps, beside a payload, what it was before it was masked, where there are
// auditors to read it.
func (g *Gate) sealed(e Entry, v any) Entry {
	if g.Sealer == nil || e.Record.Payload == nil {
		return e
	}
	data, err := json.Marshal(v)
	if err == nil {
		e.Sealed, err = g.Sealer.Seal(data, e.Record.Payload)
	}
	if err != nil {
		g.Log.Error("keeping a payload for auditors", "op", e.Record.Op, "err", audit.MaskText(err.Error()))
	}
	return e
}

func (g *Gate) intentEntry(c *call) Entry {
	r := g.record(audit.ToolIntent, c.op, c.Principal, c.Session, c.Tool)
	r.Source = &c.Source
	r.Tool.Args = maskedArgs(c.Args)
	r.Actions = recordActions(c.Plan, nil, nil)
	if c.Plan.ReadOnly() {
		return Entry{Record: r}
	}
	r.Approval = &audit.Approval{PlanDigest: c.planDigest}
	return g.sealed(withPayload(r, audit.MaskPlan(c.Plan)), c.Plan)
}

// plannedEntry is the intent with the Plan: the intent itself, or, where that had
// to be on record before the Plan could be made, what the call turned out to be.
func (g *Gate) plannedEntry(c *call) Entry {
	e := g.intentEntry(c)
	if c.recorded {
		e.Record.Type, e.Record.Source, e.Record.Tool.Args = audit.ToolPlanned, nil, nil
	}
	return e
}

// decidedRead is a decision together with the requests that follow it at once.
func (g *Gate) decidedRead(c *call, plan action.Plan, ids []string, d policy.Decision) Entry {
	e := g.decidedEntry(c.op, c.Principal, c.Session, c.Tool, d)
	e.Record.Actions = recordActions(plan, ids, nil)
	return e
}

func maskedArgs(args map[string]any) map[string]any {
	masked, _ := audit.Mask(args).(map[string]any)
	return masked
}

func (g *Gate) decidedEntry(op string, p action.Principal, session, tool string, d policy.Decision) Entry {
	r := g.record(audit.PolicyDecided, op, p, session, tool)
	if d.Digest == "" {
		d.Digest = r.Policy.Digest
	}
	r.Policy = recordPolicy(d)
	r.Outcome = map[policy.Effect]string{policy.Allow: audit.Success, policy.RequireApproval: audit.Pending, policy.Deny: audit.Denied}[d.Effect]
	return Entry{Record: r}
}

// startedEntry says that requests are about to be sent, who agreed to them, and
// which objects they are to meet, where that was looked at. Its payload is these
// objects.
func (g *Gate) startedEntry(op approvals.Operation, ids []string, previews []action.Preview) Entry {
	r := g.record(audit.ExecStarted, op.ID, op.Principal, op.Session, op.Tool)
	r.Outcome = audit.Pending
	r.Actions = recordActions(op.Plan, ids, nil)
	for i, p := range previews {
		r.Actions[i].UID, r.Actions[i].ResourceVersion = p.UID(), p.ResourceVersion()
	}
	if len(op.Votes) > 0 {
		r.Approval = &audit.Approval{By: op.By(), PlanDigest: op.PlanDigest, PreviewDigest: op.PreviewDigest, Grant: op.Grant}
	}
	if before, plain := liveBefore(op.Plan, ids, previews); before != nil {
		return g.sealed(withPayload(r, before), plain)
	}
	return Entry{Record: r}
}

// maxLive bounds what the objects before one Plan take in the log, in bytes.
const maxLive = 4 << 20

// liveBefore is what the requests with an id meet, masked and as it is, nil where
// none was looked at. A command and an eviction change nothing of the object that
// could be compared.
func liveBefore(plan action.Plan, ids []string, previews []action.Preview) (before, plain *audit.Live) {
	before, plain = &audit.Live{Live: make([]map[string]any, len(previews))}, &audit.Live{Live: make([]map[string]any, len(previews))}
	left := maxLive
	for i, p := range previews {
		a := plan.Actions[i]
		if ids[i] == "" || p.Live == nil || a.Verb == action.Create {
			continue
		}
		object := audit.MaskObject(p.Live, a.Resource.GroupResource() == "secrets")
		if data, err := json.Marshal(object); err == nil && len(data) <= left {
			before.Live[i], plain.Live[i], left = object, p.Live, left-len(data)
		}
	}
	if left == maxLive {
		return nil, nil
	}
	return before, plain
}

// outcomeEntry tells how the requests of a plan ended. results are those that
// succeeded; err is why the next one did not.
func (g *Gate) outcomeEntry(op string, p action.Principal, session, tool string, plan action.Plan, ids []string, results []Response, err error, start time.Time) Entry {
	r := g.record(audit.ExecOutcome, op, p, session, tool)
	r.Outcome = audit.Success
	r.DurationMS = g.Now().Sub(start).Milliseconds()
	r.Actions = recordActions(plan, ids, results)
	if err != nil {
		r.Outcome, r.Error = audit.Failure, recordError(err)
		var refused *APIError
		if errors.As(err, &refused) && ids != nil { // not of a preview, which is of no one Action's outcome
			r.Actions[len(results)].Code = refused.Code
		}
	}
	if plan.ReadOnly() {
		return Entry{Record: r} // what was read is not kept
	}
	bodies, plain := make([]any, len(results)), make([]json.RawMessage, len(results))
	for i, result := range results {
		var v any
		if kjson.UnmarshalCaseSensitivePreserveInts(result.Body, &v) == nil { // large numbers stay what they are
			bodies[i], plain[i] = audit.Mask(v), result.Body
		}
	}
	return g.sealed(withPayload(r, bodies), plain)
}

func (g *Gate) approvalEntry(recordType string, op approvals.Operation) Entry {
	r := g.record(recordType, op.ID, op.Principal, op.Session, op.Tool)
	r.Actions = recordActions(op.Plan, nil, nil)
	r.Approval = &audit.Approval{
		State: string(op.State), By: op.By(), Reason: op.Reason,
		PlanDigest: op.PlanDigest, PreviewDigest: op.PreviewDigest, Supersedes: op.Supersedes,
	}
	if op.State == approvals.Rejected && len(op.Votes) > 0 {
		r.Approval.By = []string{op.Votes[len(op.Votes)-1].Person.String()}
	}
	switch op.State {
	case approvals.PendingApproval:
		r.Outcome = audit.Pending
	case approvals.Authorized:
		r.Outcome = audit.Success
	default:
		r.Outcome = audit.Denied
	}
	return Entry{Record: r}
}

func recordActions(plan action.Plan, ids []string, results []Response) []audit.Action {
	out := make([]audit.Action, len(plan.Actions))
	for i, a := range plan.Actions {
		out[i] = audit.Action{
			Cluster: a.Cluster, Verb: a.Verb, Resource: a.Resource.Path(), Subresource: a.Subresource,
			Patch: a.Options.PatchType.Short(), Namespace: a.Namespace, Name: a.Name,
		}
		if ids != nil {
			out[i].AuditID = ids[i]
		}
		if i < len(results) {
			out[i].Name = cmp.Or(a.Name, results[i].Name)
			out[i].Code, out[i].UID, out[i].ResultVersion = results[i].Code, results[i].UID, results[i].ResourceVersion
		}
	}
	return out
}

// recordError gives an error the type that a reader of the log can group by.
func recordError(err error) *audit.Error {
	kind := "internal"
	var refused *APIError
	var argument *tools.ArgumentError
	switch {
	case errors.As(err, &refused):
		if kind = refused.Reason; kind == "" {
			kind = "api"
		}
	case errors.As(err, &argument):
		kind = "argument"
	case errors.Is(err, ErrNotSent):
		kind = "not_sent"
	}
	return &audit.Error{Type: kind, Message: clip(audit.MaskText(err.Error()))}
}

// maxMessage bounds an error's text, in bytes: others can make it long.
const maxMessage = 4 << 10

func clip(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	return strings.ToValidUTF8(text[:maxMessage], "") + fmt.Sprintf(" [%d more bytes]", len(text)-maxMessage)
}

// Prune takes out of the log what is older than these times, payloads and records;
// a zero time keeps all. Each commit that does has a record of it.
func (g *Gate) Prune(payloads, records time.Time) error {
	for {
		p, err := g.Store.Prunable(payloads, records)
		if err != nil || p.PayloadsBefore == 0 && p.RecordsBefore == 0 {
			return err
		}
		r := g.serverRecord(audit.LogPruned)
		r.Outcome, r.Pruned = audit.Success, &p
		if err := g.commit(Batch{Entries: []Entry{{Record: r}}}); err != nil {
			return err
		}
	}
}

// LoginRefused records a caller who could not be authenticated. A flood of them
// must not fill the log, so only so many a second become records; the others
// are counted, and the next record says how many there were.
func (g *Gate) LoginRefused(source audit.Source, why error) {
	if !g.logins.limiter.Allow() {
		g.logins.dropped.Add(1)
		return
	}
	r := g.serverRecord(audit.LoginRefused)
	r.Source, r.Outcome, r.Error = &source, audit.Denied, &audit.Error{Type: "login", Message: audit.MaskText(why.Error())}
	if n := g.logins.dropped.Swap(0); n > 0 {
		r.Error.Message += fmt.Sprintf(" (and %d more since the last record of this kind)", n)
	}
	if err := g.commit(Batch{Entries: []Entry{{Record: r}}}); err != nil {
		g.Log.Error("storing a refused login", "err", err)
	}
}

// PolicyChanged records that the set of this digest takes the place of the one
// in force, or, with an error, that what was to replace it does not load.
func (g *Gate) PolicyChanged(digest string, why error) {
	r := g.serverRecord(audit.ConfigChanged)
	if why != nil {
		r.Outcome, r.Error = audit.Failure, &audit.Error{Type: "policy", Message: clip(why.Error())}
		r.Policy.Reason = "this set stays in force"
	} else {
		r.Outcome, r.Policy.Reason = audit.Success, "takes the place of "+r.Policy.Digest
		if digest == r.Policy.Digest {
			r.Policy.Reason = "what does not load is gone again, and this set stays in force"
		}
		r.Policy.Digest = digest
	}
	if err := g.commit(Batch{Entries: []Entry{{Record: r}}}); err != nil {
		g.Log.Error("storing a change of policy", "err", err)
	}
}

// Anchored records where a checkpoint of the log was put, and where it could not
// be. The store keeps the checkpoint.
func (g *Gate) Anchored(a audit.Anchored) error {
	r := g.serverRecord(audit.LogCheckpoint)
	r.Checkpoint, r.Outcome = &a, audit.Success
	if len(a.Failed) > 0 {
		r.Outcome = audit.Failure
	}
	return g.commit(Batch{Entries: []Entry{{Record: r}}})
}

// ClusterSeen records which cluster was found behind a name: at each start of the
// server, whenever it is another one than before, and once a day, because retention
// takes old records out. A replay of what was done in it refuses that cluster. It
// reports whether it was recorded.
func (g *Gate) ClusterSeen(c audit.Cluster) bool {
	now := g.Now()
	if last, ok := g.seen.Load(c.Name); ok && last.(sight).cluster == c && now.Sub(last.(sight).at) < seeAgain {
		return false
	}
	r := g.serverRecord(audit.ClusterSeen)
	r.Cluster, r.Outcome = &c, audit.Success
	if c.UID == "" {
		r.Outcome = audit.Unknown
	}
	if err := g.commit(Batch{Entries: []Entry{{Record: r}}}); err != nil {
		g.Log.Error("storing which cluster was found", "err", err)
		return false
	}
	g.seen.Store(c.Name, sight{c, now})
	return true
}

// seeAgain is how long a record of a cluster does for.
const seeAgain = 24 * time.Hour

// sight is a cluster that was recorded, and when.
type sight struct {
	cluster audit.Cluster
	at      time.Time
}

// Refused records an authenticated caller's request that never became a call.
func (g *Gate) Refused(p action.Principal, source audit.Source, why error) {
	r := g.record(audit.CallRefused, "", p, "", "")
	r.Source, r.Outcome, r.Error = &source, audit.Denied, &audit.Error{Type: "protocol", Message: audit.MaskText(why.Error())}
	if err := g.commit(Batch{Entries: []Entry{{Record: r}}}); err != nil {
		g.Log.Error("storing a refused request", "err", err)
	}
}

// RateLimited records that a caller sends more than it may; p is nil where it is
// not known who calls. The front tells it of so many a second only.
func (g *Gate) RateLimited(p *action.Principal, source audit.Source, why error) {
	r := g.serverRecord(audit.RateLimited)
	r.Principal, r.Source, r.Outcome, r.Error = p, &source, audit.Denied, &audit.Error{Type: "rate", Message: audit.MaskText(why.Error())}
	if err := g.commit(Batch{Entries: []Entry{{Record: r}}}); err != nil {
		g.Log.Error("storing a refused request", "err", err)
	}
}

// SessionStarted records that the first call of a session came. Calls are on
// record one by one: a store that does not take this refuses the call as well.
func (g *Gate) SessionStarted(p action.Principal, source audit.Source, session string) {
	r := g.record(audit.SessionStarted, "", p, session, "")
	r.Source, r.Outcome = &source, audit.Success
	if err := g.commit(Batch{Entries: []Entry{{Record: r}}}); err != nil {
		g.Log.Error("storing the start of a session", "err", err)
	}
}

// Session is one that has ended.
type Session struct {
	ID          string
	Principal   action.Principal
	End         audit.SessionEnd
	First, Last time.Time
}

// SessionsEnded records sessions that have ended.
func (g *Gate) SessionsEnded(sessions []Session) {
	for some := range slices.Chunk(sessions, 500) {
		var b Batch
		for _, s := range some {
			r := g.record(audit.SessionEnded, "", s.Principal, s.ID, "")
			r.End, r.Outcome, r.DurationMS = &s.End, audit.Success, s.Last.Sub(s.First).Milliseconds()
			b.Entries = append(b.Entries, Entry{Record: r})
		}
		if err := g.commit(b); err != nil {
			g.Log.Error("storing the end of sessions", "err", err)
			return
		}
	}
}
