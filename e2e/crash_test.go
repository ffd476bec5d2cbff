package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"countersign/e2e/rig"
)

// stage is one server behind a proxy that can hold its requests.
type stage struct {
	testing.TB
	ctx       context.Context
	namespace string
	proxy     *rig.Proxy
	server    *rig.Server
	agent     *rig.Agent
}

func newStage(t *testing.T) *stage { return newStageWith(t, "") }

// newStageWith gives the server these rules instead of the guarded policy.
func newStageWith(t *testing.T, rules string) *stage {
	t.Helper()
	if rules != "" {
		rules = "  rules:\n" + rules
	}
	s := prepareStage(t, rules)
	s.start()
	t.Cleanup(func() {
		if err := s.server.Stop(); err != nil {
			t.Error(err)
		}
	})
	s.connect()
	return s
}

// prepareStage does all but start the server, which gets a policy of this spec
// instead of the guarded one.
func prepareStage(tb testing.TB, spec string) *stage {
	tb.Helper()
	s := &stage{TB: tb, ctx: tb.Context()}
	dir := tb.TempDir()
	var err error
	if spec != "" {
		text := "apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n" + spec
		if err := rig.WriteFiles(dir, map[string]string{"policy/policy.yaml": text}); err != nil {
			tb.Fatal(err)
		}
	}
	if s.namespace, err = newNamespace(s.ctx); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { leave(s.namespace) })
	if s.proxy, err = rig.StartProxy(world.cluster, world.admin, dir); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.proxy.Close() })
	if s.server, err = newServer(dir, s.proxy.Kubeconfig); err != nil {
		tb.Fatal(err)
	}
	return s
}

func (s *stage) connect() {
	s.Helper()
	s.agent = &rig.Agent{URL: s.server.URL, Token: world.token}
	if err := s.agent.Connect(s.ctx); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) start() {
	s.Helper()
	if err := s.server.Start(s.ctx); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) scale(replicas int) rig.Answer {
	s.Helper()
	answer, err := s.agent.Call(s.ctx, "scale_deployment", fmt.Sprintf(`{"namespace":%q,"name":"web","replicas":%d}`, s.namespace, replicas))
	if err != nil {
		s.Fatal(err)
	}
	return answer
}

func (s *stage) replicas() string {
	s.Helper()
	text, err := world.cluster.Run(s.ctx, "", "get", "deployment", "web", "-n", s.namespace, "-o", "jsonpath={.spec.replicas}")
	if err != nil {
		s.Fatal(err)
	}
	return text
}

// types lists the operation's records, without the calls that asked about it.
func (s *stage) types(op string) string {
	s.Helper()
	records, err := s.server.Export(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	var types []string
	for _, r := range records {
		if r.Op == op && (r.Type != "tool.intent" || r.Outcome != "success") {
			name := r.Type
			if r.Evidence != nil {
				name += "=" + r.Evidence.Result
			}
			types = append(types, name)
		}
	}
	return strings.Join(types, " ")
}

// eventually waits for a state that the server reaches by itself.
func (s *stage) eventually(what string, holds func() bool) {
	s.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("never: %s", what)
		}
	}
}

// sent counts the requests that really changed the Deployment's scale for the
// operation, as the API server's own audit log tells.
func (s *stage) sent(op string) int {
	s.Helper()
	return executions(s)[op]
}

// executions counts the patches that were more than a dry run, by operation, as
// the API server's own audit log tells.
func executions(tb testing.TB) map[string]int {
	tb.Helper()
	f, err := os.Open(world.cluster.AuditLog)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	count := map[string]int{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(`"patch"`)) {
			continue // the log is long, and is read again and again
		}
		var event struct {
			AuditID, Verb, RequestURI, Stage string
		}
		if json.Unmarshal(lines.Bytes(), &event) == nil && event.Stage == "ResponseComplete" &&
			event.Verb == "patch" && !strings.Contains(event.RequestURI, "dryRun") {
			op, _, _ := strings.Cut(event.AuditID, ".")
			count[op]++
		}
	}
	return count
}

func realPatch(r *http.Request) bool {
	return r.Method == http.MethodPatch && r.URL.Query().Get("dryRun") == ""
}

// An approval outlives the process: kill -9 while it waits, start, approve.
func TestKilledWhileAnApprovalWaits(t *testing.T) {
	s := newStage(t)
	op := s.scale(50).Structured.Op
	if err := s.server.Kill(); err != nil {
		t.Fatal(err)
	}
	s.start()
	if _, err := s.server.Run(s.ctx, "approvals", "approve", op); err != nil {
		t.Fatal(err)
	}
	// The agent's session and operation are still its own after the restart.
	answer, err := s.agent.Call(s.ctx, "wait_for_operation", fmt.Sprintf(`{"op":%q}`, op))
	if err != nil || answer.Structured.Status != "succeeded" {
		t.Fatalf("%+v %v", answer, err)
	}
	if got := s.replicas(); got != "50" {
		t.Errorf("the Deployment has %s replicas", got)
	}
	s.eventually("the API server logs one execution", func() bool { return s.sent(op) == 1 })
	if got, want := s.types(op), "tool.intent policy.decided approval.requested approval.voted approval.decided exec.started exec.outcome"; got != want {
		t.Errorf("records: %s", got)
	}
}

// kill -9 between exec.started and the outcome: the next start looks at the
// live object and says what became of it, and never sends the request again.
func TestKilledWhileExecuting(t *testing.T) {
	for _, arrives := range []bool{true, false} {
		t.Run(fmt.Sprintf("arrives=%v", arrives), func(t *testing.T) {
			s := newStage(t)
			held := s.proxy.Hold(realPatch)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				answer, err := s.agent.Call(s.ctx, "scale_deployment", fmt.Sprintf(`{"namespace":%q,"name":"web","replicas":5}`, s.namespace))
				t.Log(answer, err)
			}()
			select {
			case <-held: // exec.started is durable, the request is on its way
			case <-answered:
				t.Fatal("the call was answered without a request")
			}
			if err := s.server.Kill(); err != nil {
				t.Fatal(err)
			}
			<-answered
			s.proxy.Release(arrives)
			want, executions, replicas := "not_applied", 0, "2"
			if arrives {
				want, executions, replicas = "applied", 1, "5"
			}
			s.eventually("the request has gone where it goes", func() bool { return s.replicas() == replicas })

			s.start()
			op := s.last("exec.started")
			s.eventually("the operation is reconciled", func() bool { return strings.Contains(s.types(op), "exec.reconciled") })
			if got := s.types(op); got != "tool.intent policy.decided exec.started exec.unknown exec.reconciled="+want {
				t.Errorf("records: %s", got)
			}
			if got := s.replicas(); got != replicas {
				t.Errorf("the Deployment has %s replicas", got)
			}
			s.eventually("the API server logs what was sent, and no more", func() bool { return s.sent(op) == executions })

			// Another start finds nothing left to do.
			if err := s.server.Stop(); err != nil {
				t.Fatal(err)
			}
			before := s.types(op)
			s.start()
			if after := s.types(op); after != before {
				t.Errorf("a second start added records: %s", after)
			}
			if got := s.sent(op); got != executions {
				t.Errorf("sent %d times", got)
			}
		})
	}
}

// The answer to a write is lost: the server itself finds out what became of it.
func TestLostAnswer(t *testing.T) {
	s := newStage(t)
	held := s.proxy.Hold(realPatch)
	go func() {
		<-held
		s.proxy.Release(false)
	}()
	answer := s.scale(5)
	if answer.Structured.Status != "unknown" {
		t.Fatalf("%+v", answer)
	}
	op := answer.Structured.Op
	s.eventually("the operation is reconciled", func() bool { return strings.HasSuffix(s.types(op), "exec.unknown exec.reconciled=not_applied") })
	if got := s.replicas(); got != "2" {
		t.Errorf("the Deployment has %s replicas", got)
	}
}

// last is the operation of the last record of a type.
func (s *stage) last(recordType string) string {
	s.Helper()
	records, err := s.server.Export(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	for i := len(records) - 1; i >= 0; i-- {
		if records[i].Type == recordType {
			return records[i].Op
		}
	}
	s.Fatalf("no record %s", recordType)
	return ""
}

// Every Audit-ID that the export names stands in the cluster's own audit log.
func TestAuditIDs(t *testing.T) {
	s := newStage(t)
	s.scale(5)
	if _, err := s.agent.Call(s.ctx, "list_resources", fmt.Sprintf(`{"kind":"pods","namespace":%q}`, s.namespace)); err != nil {
		t.Fatal(err)
	}
	var ids []string
	s.eventually("both outcomes are in the log", func() bool {
		ids = nil
		records, err := s.server.Export(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			for _, a := range r.Actions {
				if r.Type == "exec.outcome" {
					ids = append(ids, a.AuditID)
				}
			}
		}
		return len(ids) == 2
	})
	s.eventually("the cluster's audit log has them", func() bool {
		log, err := os.ReadFile(world.cluster.AuditLog)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			if !strings.Contains(string(log), `"auditID":"`+id+`"`) {
				return false
			}
		}
		return true
	})
}
