package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/approvals/slack/slacktest"
	"countersign/e2e/rig"
)

// slackStage is one server that asks in a Slack.
type slackStage struct {
	*stage
	wire *slacktest.Server
}

// prepareSlackStage does all but start the server, which has a policy of this
// spec; approvals is the section of the configuration.
func prepareSlackStage(tb testing.TB, spec, approvals string) *slackStage {
	tb.Helper()
	s := &slackStage{stage: prepareStage(tb, spec)}
	s.ask(approvals)
	tb.Cleanup(func() {
		if err := s.server.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// ask makes the server ask in a new Slack.
func (s *slackStage) ask(approvals string) {
	s.Helper()
	dir := filepath.Dir(s.server.Config)
	var err error
	if s.wire, err = newSlack(dir, s.server, ""); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(s.wire.Close)
	if err := rig.Replace(s.server.Config, "approvals: {wait: 100ms}", "approvals: "+approvals); err != nil {
		s.Fatal(err)
	}
}

// listening waits until somebody who clicks is heard.
func (s *slackStage) listening() {
	s.Helper()
	if !s.wire.Await(time.Minute, func() bool { return s.wire.Connections() > 0 }) {
		s.Fatal("the server never connected to Slack")
	}
}

// configMaps makes so many in the namespace: c0, c1 and so on, which nothing else
// ever changes.
func (s *stage) configMaps(n int) {
	s.Helper()
	var list strings.Builder
	for i := range n {
		fmt.Fprintf(&list, "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c%d, namespace: %s, labels: {tier: a}, annotations: {note: a}}, data: {value: a}}\n", i, s.namespace)
	}
	if _, err := world.cluster.Run(s.ctx, list.String(), "create", "-f", "-"); err != nil {
		s.Fatal(err)
	}
}

// Two of bea, carl and dora have to agree. Whoever clicks, however often, and
// however often Slack delivers it: it runs once, and two people approved it.
//
// 200 operations with 50 clicks each; with the race detector, with which it takes
// four times as long, 48 operations.
func TestRacingClicks(t *testing.T) {
	const atOnce, clicks = 8, 50
	rounds := 25
	if raceFlag != nil {
		rounds = 6
	}
	s := prepareSlackStage(t, `
  rules:
  - name: two-of-three
    effect: require_approval
    match: {verbs: [patch], resources: [configmaps]}
    approval: {approvers: [operators], count: 2, expires: 30m, grant: never}
`, "{wait: 100ms}")
	s.configMaps(rounds * atOnce)
	s.start()
	s.listening()
	agents := make([]*rig.Agent, atOnce) // one is not for several goroutines
	for i := range agents {
		agents[i] = &rig.Agent{URL: s.server.URL, Token: []string{world.token, world.other}[i%2]}
		if err := agents[i].Connect(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
	var all []string
	heard := "" // timestamp of the last ephemeral message that was looked at
	late := 0   // clicks that were not acknowledged in three seconds: a busy machine
	for round := range rounds {
		ops := make([]string, atOnce)
		var work sync.WaitGroup
		for i, agent := range agents {
			work.Go(func() {
				answer, err := agent.Call(s.ctx, "patch_resource", fmt.Sprintf(
					`{"kind":"configmap","namespace":%q,"name":"c%d","patch":"{\"data\":{\"value\":\"b\"}}"}`, s.namespace, round*atOnce+i))
				if err != nil || answer.Structured.Status != "pending_approval" {
					t.Errorf("%+v %v", answer, err)
				}
				ops[i] = answer.Structured.Op
			})
		}
		work.Wait()
		if t.Failed() {
			return
		}
		all = append(all, ops...)
		var mu sync.Mutex
		for _, op := range ops {
			m, err := waitAbout(s.wire, op, `\[Approve`)
			if err != nil {
				t.Fatal(err)
			}
			for i := range clicks {
				work.Go(func() {
					// Everybody still sees the message as it was posted.
					options := []slacktest.Option{slacktest.Version(0)}
					switch i % 5 {
					case 0:
						options = append(options, slacktest.Again())
					case 1:
						options = append(options, slacktest.Twice())
					}
					who := []string{"bea", "carl", "dora"}[i%3]
					d, err := s.wire.Click(slackPeople[who].ID, m.Channel, m.TS, "approve", options...)
					if err != nil {
						t.Errorf("%s clicks: %v", who, err)
						return
					}
					if i%5 == 2 {
						d.Replay()
					}
					if !d.Acked {
						mu.Lock()
						late++
						mu.Unlock()
					}
				})
			}
		}
		work.Wait()
		for i, agent := range agents {
			answer, err := agent.Call(s.ctx, "wait_for_operation", fmt.Sprintf(`{"op":%q}`, ops[i]))
			if err != nil || answer.Structured.Status != "succeeded" {
				t.Fatalf("%+v %v", answer, err)
			}
		}
		// Everybody else learns why the click does not count, each click once.
		var losers []slacktest.Ephemeral
		want := atOnce * (clicks - 2)
		if !s.wire.Await(time.Minute, func() bool {
			losers = nil
			for _, user := range slackPeople {
				losers = append(losers, slices.DeleteFunc(s.wire.Ephemerals(slackChannel, user.ID), func(e slacktest.Ephemeral) bool { return e.TS <= heard })...)
			}
			return len(losers) >= want
		}) {
			t.Fatalf("%d of %d clicks were told why they do not count", len(losers), want)
		}
		if len(losers) > want {
			t.Errorf("%d clicks were told that they do not count; there are %d", len(losers), want)
		}
		for _, e := range losers {
			heard = max(heard, e.TS)
			if !losing.MatchString(e.Text) {
				t.Errorf("somebody is told: %s", e.Text)
			}
		}
	}
	t.Logf("%d clicks, of which %d were not acknowledged in three seconds", len(all)*clicks, late)

	type tally struct{ voted, refused, started, succeeded int }
	got := map[string]*tally{}
	for _, op := range all {
		got[op] = &tally{}
	}
	records, err := s.server.Export(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		n := got[r.Op]
		switch {
		case n == nil:
		case r.Type == "approval.voted" && r.Outcome == "denied":
			n.refused++
		case r.Type == "approval.voted":
			n.voted++
		case r.Type == "exec.started":
			n.started++
			by := slices.Compact(slices.Sorted(slices.Values(r.Approval.By)))
			if len(by) != 2 || len(r.Approval.By) != 2 {
				t.Errorf("%s was approved by %q", r.Op, r.Approval.By)
			}
		case r.Type == "exec.outcome" && r.Outcome == "success":
			n.succeeded++
		}
	}
	for op, n := range got {
		if want := (tally{2, clicks - 2, 1, 1}); *n != want {
			t.Errorf("%s: %+v", op, *n)
		}
		if m, err := waitAbout(s.wire, op, "Succeeded"); err != nil || strings.Contains(m.Rendered(), "[Approve") {
			t.Errorf("the message at the end: %s %v", m.Rendered(), err)
		}
	}
	var sent map[string]int
	s.eventually("the API server logs every execution", func() bool {
		sent = executions(t)
		return !slices.ContainsFunc(all, func(op string) bool { return sent[op] == 0 })
	})
	for _, op := range all {
		if sent[op] != 1 {
			t.Errorf("%s was sent %d times", op, sent[op])
		}
	}
	if asked := len(s.wire.Messages(slackChannel)); asked != len(all) {
		t.Errorf("%d questions about %d operations", asked, len(all))
	}
}

// losing is what the others read in a race.
var losing = regexp.MustCompile(`^(Too late: this is no longer waiting for anybody \(operation [-0-9a-f]+ is [A-Z]+, (approved|rejected) by [^()]*|You have voted on this already)`)
