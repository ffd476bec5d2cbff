package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"countersign/e2e/rig"
)

// A lock on an agent ends what it does at that moment: the call that waits for
// people is withdrawn, the command that streams is cut off, new calls are denied.
// All of it is in the log, with the lock.
func TestLockWhileItRuns(t *testing.T) {
	s := newStageWith(t, `
  - {name: pods, effect: allow, match: {verbs: [get], resources: [pods]}}
  - {name: scale, effect: require_approval, match: {tools: [scale_deployment]}, approval: {approvers: [operators]}}
  - {name: commands, effect: allow, match: {tools: [exec_in_pod], verbs: [create], resources: [pods], subresources: [exec]}}
`)
	s.reconfigure("wait: 100ms", "wait: 45s")
	s.connect()
	pod := fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: %s}, spec: {containers: [{name: app, image: "registry.example/app:1"}]}}`, s.namespace)
	if _, err := world.cluster.Run(s.ctx, pod, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if _, err := world.cluster.Run(s.ctx, "", "wait", "-n", s.namespace, "--for=condition=Ready", "pod/one"); err != nil {
		t.Fatal(err)
	}
	type ended struct {
		rig.Answer
		at time.Time
	}
	call := func(tool, arguments string) <-chan ended {
		agent := *s.agent // two calls of one session at once
		done := make(chan ended, 1)
		go func() {
			answer, err := agent.Call(s.ctx, tool, arguments)
			if err != nil {
				t.Error(err)
			}
			done <- ended{answer, time.Now()}
		}()
		return done
	}
	runs := call("exec_in_pod", fmt.Sprintf(`{"namespace":%q,"pod":"one","command":["sh","-c","echo begun; sleep 300"],"timeout_seconds":300}`, s.namespace))
	waits := call("scale_deployment", fmt.Sprintf(`{"namespace":%q,"name":"web","replicas":5}`, s.namespace))
	var running, waiting string
	s.eventually("one waits and the other streams", func() bool {
		records, err := s.server.Export(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			switch {
			case r.Type == "approval.requested":
				waiting = r.Op
			case r.Type == "exec.started" && streams(t, r.Actions[0].AuditID):
				running = r.Op
			}
		}
		return waiting != "" && running != ""
	})
	select {
	case early := <-runs:
		t.Fatalf("the command ended by itself: %+v", early)
	case early := <-waits:
		t.Fatalf("the call ended by itself: %+v", early)
	default:
	}

	begun := time.Now()
	said, err := s.server.Run(s.ctx, "lock", "add", "--principal", "system:serviceaccount:agents:oncall", "--reason", "incident 4711")
	returned := time.Now()
	if err != nil || !strings.Contains(said, "1 waiting operations withdrawn, 1 running commands cut off") {
		t.Fatalf("%s %v", said, err)
	}
	lock, _, _ := strings.Cut(said, ":")
	for name, done := range map[string]<-chan ended{"the call that waited": waits, "the command that streamed": runs} {
		answer := <-done
		t.Logf("%s answered %s after the lock command returned, and %s after it was begun", name,
			answer.at.Sub(returned).Round(time.Millisecond), answer.at.Sub(begun).Round(time.Millisecond))
		if !answer.IsError || !strings.Contains(answer.Text, "incident 4711") {
			t.Errorf("%s: the agent is told\n%s", name, answer.Text)
		}
	}
	s.eventually("the log tells how the command ended", func() bool {
		return s.types(running) == "tool.intent policy.decided tool.planned policy.decided exec.started exec.unknown exec.reconciled=undeterminable"
	})
	if got := s.types(waiting); got != "tool.intent policy.decided approval.requested approval.decided" {
		t.Errorf("the log tells of the call that waited: %s", got)
	}
	records, err := s.server.Export(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, r := range records {
		if r.Approval != nil && r.Approval.Lock == lock {
			told = append(told, r.Type+map[string]string{running: " of the command", waiting: " of the call"}[r.Op])
		}
	}
	// The lock first: it is on record before anything ends because of it.
	if got := strings.Join(told, ", "); got != "lock.added, exec.unknown of the command, approval.decided of the call" && got != "lock.added, approval.decided of the call, exec.unknown of the command" {
		t.Errorf("on record with the lock: %s", got)
	}

	if answer := s.scale(3); !answer.IsError || !strings.Contains(answer.Text, "incident 4711") || s.replicas() != "2" {
		t.Errorf("a call after the lock\n%s", answer.Text)
	}
	if _, err := s.server.Run(s.ctx, "lock", "remove", lock); err != nil {
		t.Fatal(err)
	}
	if answer, err := s.agent.Call(s.ctx, "get_resource", fmt.Sprintf(`{"kind":"pod","name":"one","namespace":%q}`, s.namespace)); err != nil || answer.IsError {
		t.Errorf("a call after the lock is removed\n%s %v", answer.Text, err)
	}
}

// streams reports whether the API server's audit log has that a request was
// switched to a stream.
func streams(t *testing.T, auditID string) bool {
	t.Helper()
	f, err := os.Open(world.cluster.AuditLog)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var event struct{ AuditID, Stage string }
		if json.Unmarshal(lines.Bytes(), &event) == nil && event.AuditID == auditID && event.Stage == "ResponseStarted" {
			return true
		}
	}
	return false
}
