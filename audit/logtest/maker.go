// Package logtest makes records as a server writes them, and signed logs of them, for tests and benchmarks
// of the log.
package logtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"countersign/action"
	"countersign/audit"
)

// Maker makes records, one after the other, of a few sessions at a time: reads,
// changes, and changes that people were asked about. The same seed makes the same.
type Maker struct {
	rand  *rand.Rand
	now   time.Time
	open  []session
	queue []Made
}

// Made is a record and the payload that it commits to, nil for none.
type Made struct {
	Record  audit.Record
	Payload []byte
}

type session struct {
	id        string
	principal *action.Principal
	calls     int // left
}

// Start is before the time of every record that a Maker makes.
var Start = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

// New is a Maker.
func New(seed uint64) *Maker {
	return &Maker{rand: rand.New(rand.NewPCG(seed, 7)), now: Start}
}

// Next makes the next record.
func (m *Maker) Next() Made {
	for len(m.queue) == 0 {
		m.call()
	}
	next := m.queue[0]
	m.queue = m.queue[1:]
	m.now = m.now.Add(time.Duration(1+m.rand.IntN(300)) * time.Millisecond)
	next.Record.Time = m.now
	return next
}

func (m *Maker) hex(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "0123456789abcdef"[m.rand.IntN(16)]
	}
	return string(b)
}

func (m *Maker) id() string {
	at := fmt.Sprintf("%012x", m.now.UnixMilli())
	return at[:8] + "-" + at[8:] + "-7" + m.hex(3) + "-8" + m.hex(3) + "-" + m.hex(12)
}

func (m *Maker) pick(list ...string) string { return list[m.rand.IntN(len(list))] }

// Common is a namespace that every fourth call is about.
const Common = "shop"

func (m *Maker) call() {
	for len(m.open) < 8 {
		user := fmt.Sprintf("system:serviceaccount:agents:agent-%d", m.rand.IntN(30))
		m.open = append(m.open, session{
			id: "S" + m.hex(42),
			principal: &action.Principal{Issuer: "https://issuer.example.com", Subject: user, Username: user,
				Groups: []string{"system:serviceaccounts", "system:serviceaccounts:agents"}, Client: "agents", OnBehalfOf: fmt.Sprintf("person%d@example.com", m.rand.IntN(200))},
			calls: 5 + m.rand.IntN(60),
		})
	}
	i := m.rand.IntN(len(m.open))
	s := m.open[i]
	if m.open[i].calls--; m.open[i].calls == 0 {
		m.open = append(m.open[:i], m.open[i+1:]...)
	}
	namespace, name := Common, "app-"+strconv.Itoa(m.rand.IntN(2000))
	if m.rand.IntN(4) > 0 {
		namespace = fmt.Sprintf("team-%d", m.rand.IntN(50))
	}
	op, cluster := m.id(), m.pick("production", "staging", "local")
	digest := "sha256:5e2ca2b427b450803ea24b43846520a6ec0a6746d7d5a9e6aa0a5c8eb1bfb09b"
	add := func(kind, tool string) *audit.Record {
		m.queue = append(m.queue, Made{Record: audit.Record{V: audit.Version, ID: m.id(), Type: kind, Op: op, Principal: s.principal, Session: s.id,
			Tool: &audit.Tool{Name: tool}, Policy: &audit.Policy{Digest: digest}, Node: "server-0"}})
		return &m.queue[len(m.queue)-1].Record
	}
	payload := func(size int) {
		made := &m.queue[len(m.queue)-1]
		var lines []string
		for len(lines)*60 < size {
			lines = append(lines, "spec.template.spec.containers[0].image: registry/"+name+":"+m.hex(8))
		}
		made.Payload, _ = json.Marshal(map[string]any{"op": op, "namespace": namespace, "name": name, "lines": lines})
		sum := sha256.Sum256(made.Payload)
		made.Record.Payload = &audit.Payload{SHA256: hex.EncodeToString(sum[:]), Bytes: len(made.Payload)}
	}
	read := m.rand.IntN(3) > 0
	if read {
		tool, resource := m.pick("get_resource", "list_resources", "get_logs", "list_events"), m.pick("v1/pods", "apps/v1/deployments", "v1/events", "v1/configmaps", "v1/services")
		object := audit.Action{Cluster: cluster, Verb: "get", Resource: resource, Namespace: namespace, Name: name}
		r := add(audit.ToolIntent, tool)
		r.Source, r.Tool.Args = &audit.Source{IP: "10.1.2.3", Transport: "http", Agent: "agent 1.2"}, map[string]any{"namespace": namespace, "name": name, "cluster": cluster}
		r.Actions = []audit.Action{object}
		object.AuditID = op + "." + m.hex(8)
		r = add(audit.PolicyDecided, tool)
		r.Outcome, r.Actions, r.Policy = audit.Success, []audit.Action{object}, &audit.Policy{Digest: digest, Decision: "allow", Rules: []string{"builtin:reads", "team-reads"}}
		if m.rand.IntN(20) == 0 {
			r.Outcome, r.Policy.Decision, r.Policy.Reason = audit.Denied, "deny", "people of this team read <their> own namespaces only"
			return
		}
		object.Code = 200
		r = add(audit.ExecOutcome, tool)
		r.Outcome, r.Actions, r.DurationMS = audit.Success, []audit.Action{object}, int64(m.rand.IntN(400))
		return
	}
	tool := m.pick("scale_deployment", "restart_workload", "apply_manifest", "delete_pod", "patch_resource")
	object := audit.Action{Cluster: cluster, Verb: "patch", Resource: m.pick("apps/v1/deployments", "apps/v1/statefulsets", "v1/configmaps", "batch/v1/cronjobs"), Patch: "merge", Namespace: namespace, Name: name}
	r := add(audit.ToolIntent, tool)
	r.Source, r.Tool.Args = &audit.Source{IP: "10.1.2.3", Transport: "http", Agent: "agent 1.2"}, map[string]any{"namespace": namespace, "name": name, "cluster": cluster, "replicas": m.rand.IntN(40)}
	r.Actions, r.Approval = []audit.Action{object}, &audit.Approval{PlanDigest: "sha256:" + m.hex(64)}
	payload(400)
	r = add(audit.PolicyDecided, tool)
	r.Outcome, r.Policy = audit.Success, &audit.Policy{Digest: digest, Decision: "allow", Rules: []string{"small-changes"}}
	if m.rand.IntN(3) == 0 {
		r.Outcome, r.Policy.Decision, r.Policy.Reason = audit.Pending, "require_approval", "changes in production need a second person"
		asked := audit.Approval{State: "PENDING", Needs: []string{"1 of team-leads"}, Expires: m.now.Add(time.Hour), Channels: []string{"cli", "slack"}, PlanDigest: "sha256:" + m.hex(64), PreviewDigest: "sha256:" + m.hex(64)}
		r = add(audit.ApprovalRequested, tool)
		r.Outcome, r.Actions, r.Approval = audit.Pending, []audit.Action{object}, &asked
		payload(1500)
		r = add(audit.ApprovalVoted, tool)
		vote := asked
		vote.By, vote.Vote, vote.Via, vote.Sets = []string{fmt.Sprintf("lead%d@example.com", m.rand.IntN(12))}, "approve", "slack", []string{"team-leads"}
		r.Outcome, r.Approval = audit.Success, &vote
		r = add(audit.ApprovalDecided, tool)
		decided := vote
		decided.State = "AUTHORIZED"
		r.Outcome, r.Approval = audit.Success, &decided
	}
	object.UID, object.ResourceVersion, object.AuditID = m.id(), strconv.Itoa(m.rand.IntN(1e8)), op+"."+m.hex(8)
	r = add(audit.ExecStarted, tool)
	r.Outcome, r.Actions = audit.Pending, []audit.Action{object}
	object.Code, object.ResultVersion = 200, strconv.Itoa(m.rand.IntN(1e8))
	r = add(audit.ExecOutcome, tool)
	r.Outcome, r.DurationMS = audit.Success, int64(m.rand.IntN(4000))
	if m.rand.IntN(25) == 0 {
		object.Code, r.Outcome, r.Error = 409, audit.Failure, &audit.Error{Type: "Conflict", Message: `the object has been modified; please apply your changes to the latest version`}
	}
	r.Actions = []audit.Action{object}
	payload(900)
}
