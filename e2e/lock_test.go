package e2e

import (
	"fmt"
	"strings"
	"testing"

	"countersign/e2e/rig"
)

// A lock cuts off a command that runs in a pod, stops a plan between two of its
// requests, and withdraws what waits; all of it is in the log.
func TestLockWhileItRuns(t *testing.T) {
	s := newStageWith(t, `
  - {name: pods, effect: allow, match: {verbs: [get], resources: [pods]}}
  - {name: scale, effect: allow, match: {tools: [scale_deployment]}}
  - {name: commands, effect: allow, match: {tools: [exec_in_pod], verbs: [create], resources: [pods], subresources: [exec]}}
`)
	pod := fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: %s}, spec: {containers: [{name: app, image: "registry.example/app:1"}]}}`, s.namespace)
	if _, err := world.cluster.Run(s.ctx, pod, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if _, err := world.cluster.Run(s.ctx, "", "wait", "-n", s.namespace, "--for=condition=Ready", "pod/one"); err != nil {
		t.Fatal(err)
	}
	answers := make(chan rig.Answer, 1)
	go func() {
		answer, err := s.agent.Call(s.ctx, "exec_in_pod", fmt.Sprintf(`{"namespace":%q,"pod":"one","command":["sleep","40"],"timeout_seconds":40}`, s.namespace))
		if err != nil {
			t.Error(err)
		}
		answers <- answer
	}()
	var op string
	s.eventually("the command runs", func() bool {
		records, err := s.server.Export(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if r.Type == "exec.started" {
				op = r.Op
			}
		}
		return op != ""
	})
	if _, err := s.server.Run(s.ctx, "lock", "add", "--principal", "system:serviceaccount:agents:oncall", "--reason", "incident 4711"); err != nil {
		t.Fatal(err)
	}
	answer := <-answers
	if !answer.IsError || !strings.Contains(answer.Text, "incident 4711") {
		t.Errorf("the agent is told\n%s", answer.Text)
	}
	s.eventually("the log tells how it ended", func() bool {
		return s.types(op) == "tool.intent policy.decided tool.planned policy.decided exec.started exec.unknown exec.reconciled=undeterminable"
	})
	if answer = s.scale(3); !answer.IsError || !strings.Contains(answer.Text, "incident 4711") || s.replicas() != "2" {
		t.Errorf("a call after the lock\n%s", answer.Text)
	}
	list, err := s.server.Run(s.ctx, "lock", "list")
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Fields(strings.Split(list, "\n")[1])[0]
	if _, err := s.server.Run(s.ctx, "lock", "remove", id); err != nil {
		t.Fatal(err)
	}
	if answer = s.scale(3); answer.IsError {
		t.Errorf("a call after the lock is removed\n%s", answer.Text)
	}
}
