package replay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

// Log is where a session is read from.
type Log struct {
	// Records calls f with every record of the log, in order, as it is stored.
	Records func(f func(record []byte) error) error
	// Payload is what the record of a sequence number commits to, nil where that is
	// nothing or not kept any more.
	Payload func(seq uint64) ([]byte, error)
}

// ref is a payload and what the record says of it.
type ref struct {
	seq uint64
	sum string
}

// operation is one call of a session, as its records tell it.
type operation struct {
	id, tool string
	plan     ref
	// supersedes is the operation that has the Plan, where people were asked again.
	supersedes string
	// started are the records of what was sent; again where an object had changed.
	started []ref
	// run is which start of the server it was sent in.
	run     int
	actions []audit.Action
	// part tells records that go on with the Actions of the one before.
	part part
	// cut says that not all of its requests fitted into its records.
	cut     bool
	answers ref
	// applied and not are what was found out after a break; open is that nothing was.
	applied, not, open bool
	// ended is why nothing was sent.
	ended string
}

// part is what two records of one event have in common.
type part struct {
	kind string
	time time.Time
	next uint64
}

// done says whether an action took effect, and if not, why it is not repeated.
func (o *operation) done(i int) (bool, string) {
	code := o.actions[i].Code
	switch {
	case o.applied, code >= 200 && code < 300:
		return true, ""
	case o.not:
		return false, "it did not take effect"
	case o.open:
		return false, "it is not known whether it took effect"
	case code != 0:
		return false, fmt.Sprintf("the API server refused it (code %d)", code)
	}
	return false, "it was not sent"
}

// target names an object in whatever version.
type target struct{ resource, namespace, name string }

func (t target) String() string {
	return strings.TrimSpace(t.resource + " " + strings.TrimPrefix(t.namespace+"/"+t.name, "/"))
}

// session is what a log tells of one, without payloads.
type session struct {
	log        Log
	operations map[string]*operation
	calls      []*operation // in the order of the log
	sent       []*operation // in the order in which they were begun
	// touches are the operations about an object, in the order in which they were begun.
	touches map[target][]*operation
	// uids are the clusters that the log knows, by UID; seen which one stood behind
	// a name in each run of the server.
	uids map[string]string
	seen map[string]map[int]string
	// callers are who they are of: agents can give their sessions one name.
	callers map[[3]string]bool
}

// read reads a whole log, and keeps of it what is about one session and which
// clusters there are.
func read(log Log, id string) (*session, error) {
	s := &session{
		log: log, operations: map[string]*operation{}, touches: map[target][]*operation{},
		uids: map[string]string{}, seen: map[string]map[int]string{}, callers: map[[3]string]bool{},
	}
	encoded, err := json.Marshal(id)
	if err != nil {
		return nil, err
	}
	mark := append([]byte(`"session":`), encoded...)
	run, found := 0, false
	err = log.Records(func(record []byte) error {
		ours := bytes.Contains(record, mark)
		if !ours && !bytes.Contains(record, []byte(audit.LogOpened)) && !bytes.Contains(record, []byte(audit.ClusterSeen)) {
			return nil
		}
		var r audit.Record
		if err := json.Unmarshal(record, &r); err != nil {
			return fmt.Errorf("reading a record of the log: %w", err)
		}
		switch {
		case r.Type == audit.LogOpened:
			run++
		case r.Type == audit.ClusterSeen && r.Cluster != nil:
			s.cluster(*r.Cluster, run)
		case r.Session == id:
			found = true
			if p := r.Principal; p != nil {
				s.callers[[3]string{p.Key(), p.Client, p.OnBehalfOf}] = true
			}
			s.add(r, run)
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("the log has no record of a session %q", id)
	}
	for _, o := range s.sent {
		for _, a := range o.actions {
			at := targetOf(a)
			if all := s.touches[at]; len(all) == 0 || all[len(all)-1] != o {
				s.touches[at] = append(all, o)
			}
		}
	}
	return s, err
}

func (s *session) cluster(c audit.Cluster, run int) {
	if s.seen[c.Name] == nil {
		s.seen[c.Name] = map[int]string{}
	}
	s.seen[c.Name][run] = c.UID
	if c.UID != "" {
		s.uids[c.UID] = c.Name
	}
}

func (s *session) add(r audit.Record, run int) {
	if r.Op == "" || r.Type == audit.ToolIntent && r.Outcome != "" {
		return // of no call, or of one that asked about another
	}
	o := s.operations[r.Op]
	if o == nil {
		o = &operation{id: r.Op}
		s.operations[r.Op] = o
		s.calls = append(s.calls, o)
	}
	if r.Tool != nil {
		o.tool = r.Tool.Name
	}
	var payload ref
	if r.Payload != nil {
		payload = ref{r.Seq, r.Payload.SHA256}
	}
	more := o.part == part{r.Type, r.Time, r.Seq}
	o.part = part{r.Type, r.Time, r.Seq + 1}
	o.cut = o.cut || r.MoreActions > 0
	if more { // of too many Actions for one record
		if r.Type == audit.ExecStarted && len(o.started) == 1 || o.started != nil && (r.Type == audit.ExecOutcome || r.Type == audit.ExecUnknown) {
			o.actions = append(o.actions, r.Actions...)
		}
		return
	}
	switch r.Type {
	case audit.ToolIntent, audit.ToolPlanned:
		o.plan = payload
	case audit.CallRefused:
		o.ended = "it was refused before it was a call"
	case audit.PolicyDecided:
		if o.ended = "policy denied it"; r.Outcome != audit.Denied {
			o.ended = "it was not carried out"
		}
	case audit.ApprovalRequested:
		if o.ended = "nobody has approved it"; r.Approval != nil {
			o.supersedes = r.Approval.Supersedes
		}
	case audit.ApprovalDecided:
		if o.ended = "it was not approved"; r.Approval != nil {
			o.ended = "it was " + strings.ToLower(r.Approval.State)
		}
	case audit.ExecStarted:
		if o.started == nil {
			o.run = run
			s.sent = append(s.sent, o)
		}
		o.started = append(o.started, payload)
		o.open = true
		if len(o.actions) == 0 {
			o.actions = r.Actions
		}
	case audit.ExecOutcome, audit.ExecUnknown:
		if o.started == nil {
			if o.ended = "it was a read"; r.Outcome != audit.Success {
				o.ended = "it failed before anything was changed"
			}
			break
		}
		// A server that stopped in between left no answers.
		o.actions, o.answers, o.open = r.Actions, payload, r.Type == audit.ExecUnknown
	case audit.ExecReconciled:
		o.applied = r.Evidence != nil && r.Evidence.Result == "applied"
		o.not = r.Evidence != nil && r.Evidence.Result == "not_applied"
	}
}

// payload reads what a record commits to. It reports false where that is not kept.
func (s *session) payload(r ref, v any) (bool, error) {
	if r.seq == 0 {
		return false, nil
	}
	data, err := s.log.Payload(r.seq)
	if err != nil || len(data) == 0 {
		return false, err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != r.sum {
		return false, fmt.Errorf("the payload of record %d is not the one that the record commits to: check the log", r.seq)
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, v); err != nil {
		return false, fmt.Errorf("reading the payload of record %d: %w", r.seq, err)
	}
	return true, nil
}

// planOf is what an operation was to send, masked.
func (s *session) planOf(o *operation) (plan action.Plan, found bool, err error) {
	for range len(s.operations) { // never round in circles
		if o.plan.seq != 0 || s.operations[o.supersedes] == nil {
			break
		}
		o = s.operations[o.supersedes]
	}
	found, err = s.payload(o.plan, &plan)
	return plan, found, err
}

// answersOf are what the API server said to each action, masked; nil where that is
// not on record.
func (s *session) answersOf(o *operation) ([]map[string]any, error) {
	answers := make([]map[string]any, len(o.actions))
	var recorded []any
	if _, err := s.payload(o.answers, &recorded); err != nil {
		return nil, err
	}
	for i := range min(len(recorded), len(answers)) {
		answers[i], _ = recorded[i].(map[string]any)
	}
	return answers, nil
}

// before is an object as the session first found it, as far as that is on record,
// and the operation that looked at it.
func (s *session) before(at target) (map[string]any, *operation, error) {
	for _, o := range s.touches[at] {
		for _, r := range slices.Backward(o.started) { // the last one is what the request met
			var recorded audit.Live
			if found, err := s.payload(r, &recorded); err != nil {
				return nil, nil, err
			} else if !found {
				continue
			}
			for i, a := range o.actions[:min(len(o.actions), len(recorded.Live))] {
				if a.Subresource == "" && targetOf(a) == at && recorded.Live[i] != nil {
					return recorded.Live[i], o, nil
				}
			}
		}
	}
	return nil, nil, nil
}

// targetOf names the object of a recorded request.
func targetOf(a audit.Action) target {
	return target{resourceOf(a).GroupResource(), a.Namespace, a.Name}
}

// resourceOf reads a Resource's Path.
func resourceOf(a audit.Action) action.Resource {
	parts := strings.Split(a.Resource, "/")
	if len(parts) == 2 {
		return action.Resource{Version: parts[0], Resource: parts[1]}
	}
	if len(parts) != 3 {
		return action.Resource{Resource: a.Resource}
	}
	return action.Resource{Group: parts[0], Version: parts[1], Resource: parts[2]}
}

// clusters are those that the session sent changes to, by name.
func (s *session) clusters() map[string][]int {
	runs := map[string][]int{}
	for _, o := range s.sent {
		for _, a := range o.actions {
			if !(action.Action{Verb: a.Verb}).ReadOnly() && !slices.Contains(runs[a.Cluster], o.run) {
				runs[a.Cluster] = append(runs[a.Cluster], o.run)
			}
		}
	}
	return runs
}
