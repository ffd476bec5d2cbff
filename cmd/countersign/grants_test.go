package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"countersign/action"
	"countersign/admin"
	"countersign/approvals"
	"countersign/configs"
	"countersign/gate"
	"countersign/policy"
	"countersign/storage"
)

// running is a server with a question that everybody at the socket may answer,
// and a grant; config.yaml is its configuration.
func running(t *testing.T) {
	t.Helper()
	in(t, map[string]string{"p/p.yaml": oneRule, "config.yaml": settingsOf("p"), "data/x": ""})
	store, err := storage.Open("data/countersign.db", storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	live, err := newLivePolicy(&configs.Config{Policy: "p"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	question := func(id string, grantFor time.Duration) approvals.Operation {
		return approvals.Operation{
			ID: id, State: approvals.PendingApproval, Revision: 1, Created: time.Now(), Expires: time.Now().Add(time.Hour), Tool: "gone", GrantFor: grantFor,
			Principal: action.Principal{Issuer: "https://idp", Subject: "s", Username: "devin\x1b[2J"},
			Plan: action.Plan{Actions: []action.Action{{
				Cluster: "c", Verb: action.Patch, Namespace: "shop", Name: "a", Resource: action.Resource{Version: "v1", Resource: "configmaps", Namespaced: true},
			}}},
			Diffs:        [][]action.Change{{{Op: "replace", Path: "/data/a", Old: "1", New: "2"}}},
			Requirements: []approvals.Requirement{{Rule: "r", Approvers: []string{"all"}, Count: 1}},
		}
	}
	one := question("kind", time.Minute)
	held := approvals.Grant{
		ID: "held", Revision: 1, Op: "before", Principal: one.Principal, Tool: "scale_deployment", Kinds: one.Kinds(), Uses: 7,
		Votes:   []approvals.Vote{{Person: approvals.Person{ID: "slack:T/U", Name: "bea\u202e"}, Ballot: approvals.Ballot{Approve: true, Grant: true}}},
		Created: time.Now(), Expires: time.Now().Add(time.Hour + time.Second/2),
	}
	held.Principal.OnBehalfOf = "anna"
	over := held
	over.ID, over.Expires = "over", time.Now().Add(-time.Second)
	err = store.Commit(t.Context(), gate.Batch{Operations: []approvals.Operation{one, question("single", 0)}, Grants: []approvals.Grant{held, over}})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	g := &gate.Gate{Store: store, Policy: live.set.Load, Log: log, Now: time.Now, MaxPending: 20}
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	listener, err := admin.Listen("data/admin.sock")
	if err != nil {
		t.Fatal(err)
	}
	people := directory(&configs.Config{Approvers: map[string]configs.Approvers{"all": {Local: []string{"*"}}}})
	server := (&admin.Server{Gate: g, Store: store, People: people, Audit: store, Log: log}).HTTP()
	go server.Serve(listener)
	t.Cleanup(func() {
		server.Close()
		g.Stop(context.Background())
		store.Close()
	})
}

func TestGrantsCommands(t *testing.T) {
	running(t)
	say := func(words string) string {
		t.Helper()
		return succeed(t, append(strings.Fields(words), "-c", "config.yaml")...)
	}
	refuse := func(words, want string) {
		t.Helper()
		if out, errOut, code := execute(append(strings.Fields(words), "-c", "config.yaml")...); code != 1 || out != "" || !strings.Contains(errOut, want) {
			t.Errorf("%s: exit %d, %q, %q; want %q", words, code, out, errOut, want)
		}
	}
	list := say("grants list")
	lines := strings.Split(list, "\n")
	if len(lines) != 3 || strings.Join(strings.Fields(lines[0]), " ") != "GRANT FOR TOOL GIVEN BY USES ENDS WHAT" {
		t.Fatalf("got %s", list)
	}
	for _, want := range []string{"held ", ` devin\u{1B}[2J, on behalf of anna `, " scale_deployment ", ` bea\u{202E} (slack:T/U) `, " 7 ", " in 1h0m0s ", "patch configmaps", "/data/a"} {
		if !strings.Contains(lines[1], want) {
			t.Errorf("%q is not in %q", want, lines[1])
		}
	}
	if out := say("grants list -o json"); !strings.Contains(out, `"id": "held"`) || !strings.Contains(out, `"uses": 7`) || strings.Contains(out, `"over"`) {
		t.Errorf("got %s", out)
	}
	refuse("grants list -o yaml", "text or json")
	refuse("grants revoke none", "grant none: not found")
	refuse("grants revoke over", "grant over: not found")
	refuse("grants give", `there is no command "countersign grants give"`)
	if out := say("grants revoke held --reason over"); !strings.HasPrefix(out, "held is revoked by ") || !strings.HasSuffix(out, "; it was used 7 times\n") {
		t.Errorf("got %s", out)
	}
	if out := say("grants list"); !strings.Contains(out, " revoked by ") || strings.Contains(out, " in 1h") {
		t.Errorf("got %s", out)
	}

	if out := say("approvals show kind"); !strings.Contains(out, "set /data/a; it can be approved for 1 minute (approvals approve --kind)\n") {
		t.Errorf("got %s", out)
	}
	if out := say("approvals show single"); strings.Contains(out, "it can be approved for") {
		t.Errorf("got %s", out)
	}
	refuse("approvals approve single --kind", "only this one can be approved: single")
	refuse("approvals reject kind --kind --reason no", "unknown flag: --kind")
	if out := say("approvals approve kind --kind"); !strings.HasPrefix(out, "kind approved") {
		t.Errorf("got %s", out)
	}
	if out := say("grants list"); strings.Count(out, "\n") != 3 || !strings.Contains(out, " in 1m0s ") && !strings.Contains(out, " in 59s ") {
		t.Errorf("got %s", out)
	}
	if out := say("audit export"); strings.Count(out, `"type":"grant.created"`) != 1 || strings.Count(out, `"type":"grant.revoked"`) != 1 {
		t.Errorf("got %s", out)
	}
}

func TestGrantsWithoutAServer(t *testing.T) {
	in(t, map[string]string{"config.yaml": settingsOf("p")})
	if _, errOut, code := execute("grants", "list", "-c", "config.yaml"); code != 1 || !strings.Contains(errOut, "no server answers on the admin socket") {
		t.Errorf("exit %d, %s", code, errOut)
	}
}

// Whoever reads the help of a command that decides finds out what it does.
func TestHelpOfGrants(t *testing.T) {
	for words, want := range map[string][]string{
		"--help":                   {"grants ", "List and take back consent to kinds of change"},
		"grants --help":            {"list ", "revoke "},
		"grants revoke --help":     {"--reason", "nothing starts under it any more"},
		"approvals approve --help": {"--kind", "approve this kind of change for a time", "--reason"},
	} {
		out := succeed(t, strings.Fields(words)...)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s says nothing of %q:\n%s", words, w, out)
			}
		}
	}
}

// A token that others may read is not used, and one of another kind is not sent.
func TestSlackSecrets(t *testing.T) {
	in(t, map[string]string{"bot": " xoxb-1\n", "app": "xapp-1", "sign": "0123", "empty": "\n", "open": "xoxb-2", "group": "xoxb-3"})
	for name, mode := range map[string]os.FileMode{"open": 0o604, "group": 0o660} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct{ bot, app, sign, want string }{
		{"bot", "app", "", ""},
		{"bot", "", "sign", ""},
		{"absent", "app", "", "reading a secret: stat absent: no such file or directory"},
		{"open", "app", "", "open may be read by everybody or written by a group (mode 0604): chmod 600 it"},
		{"group", "app", "", "group may be read by everybody or written by a group (mode 0660): chmod 600 it"},
		{"app", "bot", "", `app does not hold what Slack gave for it: docs/slack.md says where that is (it begins with "xoxb-")`},
		{"bot", "sign", "", `sign does not hold what Slack gave for it: docs/slack.md says where that is (it begins with "xapp-")`},
		{"empty", "app", "", `empty does not hold what Slack gave for it: docs/slack.md says where that is (it begins with "xoxb-")`},
		{"bot", "", "empty", "empty does not hold what Slack gave for it: docs/slack.md says where that is"},
	} {
		config := &configs.Config{Slack: &configs.Slack{BotTokenFile: row.bot, AppTokenFile: row.app, SigningSecretFile: row.sign, Channel: "C012AB3CD", APIURL: "http://127.0.0.1:1/"}}
		s, err := newSlack(config, nil, nil, nil, slog.New(slog.DiscardHandler))
		if row.want != "" {
			if s != nil || err == nil || err.Error() != row.want {
				t.Errorf("%+v: %v", row, err)
			}
			continue
		}
		if err != nil || s.BotToken != "xoxb-1" || (s.AppToken == "xapp-1") != (row.app != "") || (s.SigningSecret == "0123") != (row.sign != "") {
			t.Errorf("%+v: %v, %+v", row, err, s)
		}
	}
	if s, err := newSlack(&configs.Config{}, nil, nil, nil, nil); s != nil || err != nil || slackStatus(s) != nil {
		t.Errorf("without Slack: %+v, %v", s, err)
	}
	if text, err := readSecret("bot"); err != nil || text != "xoxb-1" {
		t.Errorf("%q, %v", text, err)
	}
}

// What Slack signs comes over HTTP, which there is none of on stdio.
func TestSignedSlackOnStdio(t *testing.T) {
	in(t, map[string]string{"p/p.yaml": oneRule, "config.yaml": settingsOf("p") + "slack: {botTokenFile: b, signingSecretFile: s, channel: C012AB3CD}\n"})
	t.Setenv(tokenVariable, "x")
	if _, errOut, code := execute("serve", "--stdio", "-c", "config.yaml"); code != 1 || !strings.Contains(errOut, "slack.signingSecretFile needs an address that Slack can reach") {
		t.Errorf("exit %d, %s", code, errOut)
	}
}

// Who is who, as the configuration says it.
func TestDirectory(t *testing.T) {
	d := directory(&configs.Config{
		Approvers: map[string]configs.Approvers{"sre": {Local: []string{"bea"}, Slack: []string{"U1"}, SlackGroups: []string{"S1"}, Emails: []string{"dora@example.com"}}},
		People:    []configs.Person{{Name: "Bea", Local: []string{"bea"}, Slack: []string{"U1"}, Principals: []string{"bea@example.com"}}},
	})
	if got, want := strings.Join(d.Sets["sre"], " "), "local:bea slack:U1 slackgroup:S1 email:dora@example.com"; got != want {
		t.Errorf("sre are %s; want %s", got, want)
	}
	if got, want := strings.Join(d.People[0], " "), "local:bea slack:U1 principal:bea@example.com"; len(d.People) != 1 || got != want {
		t.Errorf("Bea is %s; want %s", got, want)
	}
	if channelLabel(&configs.Config{}) != "" || channelLabel(&configs.Config{Slack: &configs.Slack{ChannelLabel: "l"}}) != "l" {
		t.Error("the label is another")
	}
}

// Status says whether answers can come in from Slack, and what it has not been told.
func TestStatusOfSlack(t *testing.T) {
	in(t, map[string]string{"p/p.yaml": oneRule, "config.yaml": settingsOf("p"), "data/x": ""})
	listener, err := admin.Listen("data/admin.sock")
	if err != nil {
		t.Fatal(err)
	}
	states := make(chan *admin.SlackStatus, 9)
	server := (&admin.Server{Log: slog.New(slog.DiscardHandler), Status: func() admin.Status {
		return admin.Status{Slack: <-states, Policy: admin.PolicyStatus{Info: policy.Info{Rules: 1}}}
	}}).HTTP()
	go server.Serve(listener)
	defer server.Close()
	at := time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	for _, row := range []struct {
		state *admin.SlackStatus
		want  string
	}{
		{nil, ""},
		{&admin.SlackStatus{Connected: true}, "Slack    connected; every question is shown as it stands\n"},
		{&admin.SlackStatus{Untold: 3}, "Slack    not connected: answers cannot come in; people can still use countersign approvals; questions not shown as they stand: 3\n"},
		{&admin.SlackStatus{Connected: true, Untold: 1, Error: "ratelimited\x1b[2J", ErrorTime: at}, "Slack    answers come in, but Slack refuses requests; questions not shown as they stand: 1\n         last error at 2026-03-14T12:00:00Z: ratelimited\\u{1B}[2J\n"},
	} {
		states <- row.state
		out := succeed(t, "status", "-c", "config.yaml")
		if _, slack, found := strings.Cut(out, "Slack"); found != (row.want != "") || found && !strings.HasPrefix("Slack"+slack, row.want) {
			t.Errorf("got %q; want %q in it", out, row.want)
		}
	}
	states <- &admin.SlackStatus{Connected: true, Untold: 2}
	if out := succeed(t, "status", "-o", "json", "-c", "config.yaml"); !strings.Contains(out, `"untold": 2`) {
		t.Errorf("got %s", out)
	}
}
