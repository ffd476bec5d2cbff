package slack

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/action"
	"countersign/approvals"
	"countersign/approvals/slack/slacktest"
	"countersign/gate"
	"countersign/storage"
)

// stage is a Slack with a channel, and a store.
type stage struct {
	*testing.T
	wire  *slacktest.Server
	store *storage.Store
	ahead time.Duration // of the machine's clock
}

const (
	testChannel = "CAPPROVE1"
	testGroup   = "SOPERATE1"
)

func newStage(t *testing.T) *stage {
	t.Helper()
	wire, err := slacktest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(wire.Close)
	wire.AddChannel(slacktest.Channel{ID: testChannel})
	store, err := storage.Open(filepath.Join(t.TempDir(), "test.db"), storage.Options{Messenger: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return &stage{T: t, wire: wire, store: store}
}

// run tells Slack until the end of the test, or until the function is called.
func (s *stage) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	messenger := New(Config{
		Store: s.store, APIURL: s.wire.URL, BotToken: s.wire.BotToken, SigningSecret: s.wire.SigningSecret, Channel: testChannel,
		People: &approvals.Directory{Sets: map[string][]string{"operators": {"slackgroup:" + testGroup, "slack:UCARL0001"}}},
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)), Now: func() time.Time { return time.Now().Add(s.ahead) },
	})
	go func() {
		defer close(done)
		messenger.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	s.Cleanup(stop)
	return stop
}

// put stores a question of an age, with so much time left.
func (s *stage) put(id string, age, left time.Duration) approvals.Operation {
	s.Helper()
	now := time.Now()
	op := approvals.Operation{
		ID: id, State: approvals.PendingApproval, Revision: 1, Tool: "scale_deployment",
		Principal: action.Principal{Issuer: "https://issuer.example", Subject: "ci", Username: "ci"},
		Plan: action.Plan{Actions: []action.Action{{
			Cluster: "local", Verb: action.Patch, Resource: action.Resource{Group: "apps", Version: "v1", Resource: "deployments"},
			Namespace: "shop", Name: "web",
		}}},
		Diffs:        [][]action.Change{{{Op: "replace", Path: "/spec/replicas", Old: 2, New: 50}}},
		Requirements: []approvals.Requirement{{Rule: "ask", Approvers: []string{"operators"}, Count: 1, Expires: age + left}},
		Created:      now.Add(-age), Updated: now.Add(-age), Expires: now.Add(left),
	}
	s.commit(op)
	return op
}

func (s *stage) commit(op approvals.Operation) {
	s.Helper()
	if err := s.store.Commit(context.Background(), gate.Batch{Operations: []approvals.Operation{op}}); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) await(what string, ok func() bool) {
	s.Helper()
	if !s.wire.Await(20*time.Second, ok) {
		s.Fatalf("not in time: %s", what)
	}
}

// replies are those below all messages.
func (s *stage) replies() (all []string) {
	for _, m := range s.wire.Messages(testChannel) {
		for _, r := range m.Replies {
			all = append(all, r.Rendered())
		}
	}
	return all
}

// When a quarter of the time is left, but at least a minute, those who may decide
// are called once, also over a restart; never about what is decided already.
func TestReminder(t *testing.T) {
	s := newStage(t)
	// A minute is left of two in half a second, a quarter of an hour in a second.
	decided := s.put("01a206a0-0000-7000-8000-000000000001", time.Minute, time.Minute+1500*time.Millisecond)
	s.put("01a206a0-0000-7000-8000-000000000002", 2*time.Minute, time.Minute+500*time.Millisecond)
	s.put("01a206a0-0000-7000-8000-000000000003", 45*time.Minute, 15*time.Minute+time.Second)
	s.put("01a206a0-0000-7000-8000-000000000004", time.Minute, 59*time.Second) // too short for one
	stop := s.run()
	s.await("four messages", func() bool { return len(s.wire.Messages(testChannel)) == 4 })
	decided.State, decided.Revision = approvals.Cancelled, 2
	s.commit(decided)
	s.await("two reminders and an outcome", func() bool { return len(s.replies()) == 3 })
	stop()
	s.run()
	s.put("01a206a0-0000-7000-8000-000000000005", 2*time.Minute, time.Minute+300*time.Millisecond)
	s.await("another reminder", func() bool { return len(s.replies()) == 4 })

	reminders := 0
	for _, m := range s.wire.Messages(testChannel) {
		for _, r := range m.Replies {
			text := r.Rendered()
			if !strings.Contains(text, "Still waiting for 1 more approval") {
				continue
			}
			reminders++
			if !strings.Contains(text, "«@"+testGroup+"»") || !strings.Contains(text, "«@UCARL0001»") {
				t.Errorf("the reminder does not call those who may decide:\n%s", text)
			}
			if strings.Contains(string(m.Metadata), decided.ID) {
				t.Errorf("a reminder of what was withdrawn:\n%s", m.Rendered())
			}
		}
	}
	if reminders != 3 {
		t.Errorf("%d reminders: %q", reminders, s.replies())
	}
}

// A message whose answer was lost is found again, whatever this machine's clock says,
// and when it is put right meanwhile.
func TestFoundByTheClockOfSlack(t *testing.T) {
	s := newStage(t)
	s.ahead = time.Hour
	s.wire.Fail("chat.postMessage", 1, slacktest.Trouble{Cut: true, Done: true})
	s.put("01a206a0-0000-7000-8000-000000000001", time.Minute, 4*time.Hour)
	stop := s.run()
	s.await("a message", func() bool { return len(s.wire.Messages(testChannel)) == 1 })
	stop()
	s.ahead = 0
	s.run()
	s.await("it is looked for", func() bool { return len(s.wire.Calls("conversations.history")) > 0 })
	s.put("01a206a0-0000-7000-8000-000000000002", time.Minute, 4*time.Hour)
	s.await("the next message", func() bool {
		m := s.wire.Messages(testChannel)
		return strings.Contains(string(m[len(m)-1].Metadata), "000000000002")
	})
	if n := len(s.wire.Messages(testChannel)); n != 2 {
		t.Errorf("%d messages about two questions", n)
	}
}
