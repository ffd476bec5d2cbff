package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign/e2e/rig"
)

// modern is the head of a message of protocol revision 2026-07-28.
const modern = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"rig","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}`

// reply is what came back to a message.
type reply struct {
	status    int
	challenge string
	body      string
	err       error
}

// send posts a message with the headers of a revision.
func (s *stage) send(token, session, version string, headers map[string]string, body string) reply {
	req, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.server.URL, strings.NewReader(body))
	if err != nil {
		return reply{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Mcp-Protocol-Version", version)
	req.Header.Set("Authorization", "Bearer "+token)
	if session != "" {
		req.Header.Set("Mcp-Session-Id", session)
	}
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header.Get("WWW-Authenticate"), string(answer), err}
}

// pending makes a call wait for a person, and returns a channel with how the
// waiting call itself ended.
func (s *stage) pending(call func() reply) <-chan reply {
	s.Helper()
	done := make(chan reply, 1)
	go func() { done <- call() }()
	s.eventually("the call waits", func() bool {
		list, err := s.server.Run(s.ctx, "approvals", "list")
		return err == nil && strings.Contains(list, "PENDING_APPROVAL")
	})
	return done
}

// One client cannot cancel another's call by guessing its request id, in either
// era: mcp-go knows a call without a session by the bare id.
func TestCancelOfAnother(t *testing.T) {
	for _, era := range []string{"2025-06-18", "2026-07-28"} {
		t.Run(era, func(t *testing.T) {
			s := newStage(t)
			s.reconfigure("wait: 100ms", "wait: 20s")
			arguments := fmt.Sprintf(`{"namespace":%q,"name":"web","replicas":50}`, s.namespace)
			done := s.pending(func() reply {
				if era == "2025-06-18" {
					return s.send(world.token, s.agent.Session, era, nil,
						`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"scale_deployment","arguments":`+arguments+`}}`)
				}
				return s.send(world.token, "", era, map[string]string{"Mcp-Method": "tools/call", "Mcp-Name": "scale_deployment"},
					`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"scale_deployment","arguments":`+arguments+`,`+modern+`}}`)
			})
			attacker := &rig.Agent{URL: s.server.URL, Token: world.other}
			if err := attacker.Connect(s.ctx); err != nil {
				t.Fatal(err)
			}
			cancels := []struct{ session, version, meta string }{
				{"", "2025-06-18", ""},
				{attacker.Session, "2025-06-18", ""},
				{s.agent.Session, "2025-06-18", ""},
				{"", "2026-07-28", "," + modern},
				{attacker.Session, "2026-07-28", "," + modern},
				{attacker.Session, "2025-06-18", "," + modern},
			}
			for _, c := range cancels {
				s.send(world.other, c.session, c.version, map[string]string{"Mcp-Method": "notifications/cancelled"},
					`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7`+c.meta+`}}`)
			}
			// The call still waits: approved, it is the one that answers.
			list, err := s.server.Run(s.ctx, "approvals", "list", "-o", "json")
			if err != nil {
				t.Fatal(err)
			}
			var ops []struct{ ID string }
			if err := json.Unmarshal([]byte(list), &ops); err != nil || len(ops) != 1 {
				t.Fatalf("%s %v", list, err)
			}
			if _, err := s.server.Run(s.ctx, "approvals", "approve", ops[0].ID); err != nil {
				t.Fatal(err)
			}
			if answer := <-done; !strings.Contains(answer.body, `"status":"succeeded"`) {
				t.Errorf("the waiting call ended with %+v", answer)
			}
		})
	}
}

// Progress goes to the call that it is about and to nobody else; there is no
// stream on which another could listen.
func TestProgressOfAnother(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.reconfigure("wait: 100ms", "wait: 12s")
	arguments := fmt.Sprintf(`{"namespace":%q,"name":"web","replicas":50}`, s.namespace)
	for _, session := range []string{"", s.agent.Session} {
		req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, s.server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "text/event-stream")
		req.Header.Set("Authorization", "Bearer "+world.other)
		req.Header.Set("Mcp-Session-Id", session)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed && resp.StatusCode != http.StatusNotFound {
			t.Errorf("a listening stream was opened: %d", resp.StatusCode)
		}
	}
	done := s.pending(func() reply {
		return s.send(world.token, s.agent.Session, "2025-06-18", nil,
			`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"scale_deployment","arguments":`+arguments+`,"_meta":{"progressToken":"mine"}}}`)
	})
	attacker := &rig.Agent{URL: s.server.URL, Token: world.other}
	if err := attacker.Connect(s.ctx); err != nil {
		t.Fatal(err)
	}
	var heard bytes.Buffer
	for {
		_, body, err := attacker.Post(s.ctx, []byte(`{"jsonrpc":"2.0","id":1,"method":"ping"}`))
		if err != nil {
			t.Fatal(err)
		}
		heard.Write(body)
		select {
		case answer := <-done:
			if !strings.Contains(answer.body, `"progressToken":"mine"`) || !strings.Contains(answer.body, "pending_approval") {
				t.Errorf("the caller heard %+v", answer)
			}
			if strings.Contains(heard.String(), "progress") {
				t.Errorf("the other heard %s", heard.String())
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// A session belongs to the principal that opened it.
func TestSessionOfAnother(t *testing.T) {
	s := newStage(t)
	const ping = `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodDelete} {
		req, err := http.NewRequestWithContext(s.ctx, method, s.server.URL, strings.NewReader(ping))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+world.other)
		req.Header.Set("Mcp-Session-Id", s.agent.Session)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s on another's session: %d", method, resp.StatusCode)
		}
	}
	if own := s.send(world.token, s.agent.Session, "2025-06-18", nil, ping); own.status != http.StatusOK {
		t.Errorf("the owner's session is gone: %+v", own)
	}
}

// Who has no valid token gets a challenge and no detail, and is in the log; the
// token is nowhere.
func TestLogin(t *testing.T) {
	s := newStage(t)
	wrongAudience, err := token(s.ctx, "oncall", "https://elsewhere.example")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(world.token, ".")
	forged := parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2]))
	for name, bad := range map[string]string{"none": "", "wrong audience": wrongAudience, "forged": forged, "not a JWT": "hunter2"} {
		resp := s.send(bad, "", "2025-06-18", nil, `{"jsonrpc":"2.0","id":1,"method":"ping"}`)
		if resp.status != http.StatusUnauthorized || !strings.Contains(resp.challenge, "resource_metadata=") {
			t.Errorf("%s: %+v", name, resp)
		}
		if got := strings.TrimSpace(resp.body); got != "a valid bearer token is needed" {
			t.Errorf("%s: the caller is told %q", name, got)
		}
	}
	records, err := s.server.Export(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, r := range records {
		if r.Type == "login.refused" {
			refused++
		}
		for _, secret := range []string{wrongAudience, forged, "hunter2", world.token} {
			if strings.Contains(r.Raw, secret) {
				t.Errorf("a token is in the log: %s", r.Raw)
			}
		}
	}
	if refused != 4 {
		t.Errorf("%d refused logins are in the log", refused)
	}
}

// A foreign Host or Origin, a body beyond the limit, and nesting without end.
func TestGuard(t *testing.T) {
	s := newStage(t)
	const ping = `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	for _, row := range []struct {
		name, host, origin, body string
		want                     int
	}{
		{"the agent's own", "", "", ping, 200},
		{"our origin", "", "http://127.0.0.1", ping, 200},
		{"foreign origin", "", "https://evil.example", ping, 403},
		{"rebound host", "evil.example", "", ping, 403},
		{"10 MiB", "", "", `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"` + strings.Repeat("x", 10<<20) + `"}}`, 413},
		{"deep", "", "", `{"jsonrpc":"2.0","id":1,"method":"ping","params":` + strings.Repeat(`{"a":`, 1000) + `1` + strings.Repeat(`}`, 1000) + `}`, 400},
		{"not JSON", "", "", `hello`, 400},
	} {
		req, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.server.URL, strings.NewReader(row.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+world.token)
		req.Header.Set("Mcp-Session-Id", s.agent.Session)
		if row.host != "" {
			req.Host = row.host
		}
		if row.origin != "" {
			req.Header.Set("Origin", row.origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != row.want {
			t.Errorf("%s: %d instead of %d", row.name, resp.StatusCode, row.want)
		}
	}
	// What fits the guard but not a manifest is refused by the tool.
	answer, err := s.agent.Call(s.ctx, "apply_manifest", `{"manifest":"`+strings.Repeat("#", 2<<20)+`"}`)
	if err != nil || !strings.Contains(answer.Text, "1048576 is the most that is taken") {
		t.Errorf("%.300s %v", answer.Text, err)
	}
}

// The same job over stdio, for the one caller whose token is in the environment.
func TestStdio(t *testing.T) {
	for _, row := range []struct{ name, token, want string }{
		{"good", world.token, `"text":"Data from the cluster`},
		{"refused", "nonsense", "the token in COUNTERSIGN_TOKEN was refused"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			server, err := newServer(dir, world.cluster.Kubeconfig)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), server.Binary, "serve", "--stdio", "--config", server.Config)
			cmd.Env = append(os.Environ(), "COUNTERSIGN_TOKEN="+row.token)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(stdout)
			exchange := func(message string) string {
				fmt.Fprintln(stdin, message)
				answer, err := lines.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				return answer
			}
			exchange(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"rig","version":"1"}}}`)
			if answer := exchange(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"list_namespaces","arguments":{}}}`); !strings.Contains(answer, row.want) {
				t.Error(answer)
			}
			// What is too large or too deep is answered, and the session goes on.
			for _, bad := range []string{strings.Repeat("x", 5<<20), strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), `{"jsonrpc":"2.0","id":3,"id":4,"method":"ping"}`} {
				if answer := exchange(bad); !strings.Contains(answer, `"error":{"code":-32600`) {
					t.Error(answer)
				}
			}
			if answer := exchange(`{"jsonrpc":"2.0","id":5,"method":"ping"}`); !strings.Contains(answer, `"result":{}`) {
				t.Error(answer)
			}
			stdin.Close()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			records, err := server.Export(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			found := map[string]int{}
			for _, r := range records {
				found[r.Type]++
			}
			if row.name == "good" && found["call.refused"] != 3 || row.name == "refused" && found["login.refused"] < 3 {
				t.Errorf("on record: %v", found)
			}
		})
	}
}

// reconfigure changes the configuration file and starts the server again.
func (s *stage) reconfigure(old, new string) {
	s.Helper()
	if err := s.server.Stop(); err != nil {
		s.Fatal(err)
	}
	config, err := os.ReadFile(s.server.Config)
	if err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(s.server.Config, bytes.Replace(config, []byte(old), []byte(new), 1), 0o600); err != nil {
		s.Fatal(err)
	}
	s.start()
}

// A server that is told to stop answers who comes now with "later", finishes what it has
// begun, and ends as if nothing had been wrong.
func TestStopFinishesWhatRuns(t *testing.T) {
	s := newStage(t)
	held := s.proxy.Hold(realPatch)
	answered := make(chan rig.Answer, 1)
	go func() {
		answer, err := s.agent.Call(s.ctx, "scale_deployment", fmt.Sprintf(`{"namespace":%q,"name":"web","replicas":5}`, s.namespace))
		if err != nil {
			t.Error(err)
		}
		answered <- answer
	}()
	<-held
	if err := s.server.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.eventually("the server refuses what is new", func() bool {
		resp, err := http.Get(strings.TrimSuffix(s.server.URL, "/mcp") + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	if r := s.send(world.token, s.agent.Session, "2025-06-18", nil, `{"jsonrpc":"2.0","id":1,"method":"ping"}`); r.status != http.StatusServiceUnavailable {
		t.Errorf("a call while the server stops: %+v", r)
	}
	s.proxy.Release(true)
	if answer := <-answered; answer.Structured.Status != "succeeded" {
		t.Errorf("the call that ran: %+v", answer)
	}
	<-s.server.Exited()
	if err := s.server.Stop(); err != nil { // which only asks how it ended: a second signal would kill it
		t.Errorf("it ended with %v", err)
	}
	if got := s.replicas(); got != "5" {
		t.Errorf("the Deployment has %s replicas", got)
	}
}

// A caller who lost a group while an approval waited is denied when it would run.
func TestLostGroup(t *testing.T) {
	s := newStage(t)
	issuer, err := rig.StartIssuer()
	if err != nil {
		t.Fatal(err)
	}
	defer issuer.Close()
	s.reconfigure("issuers: [", fmt.Sprintf("issuers: [{url: %q, groupsClaim: groups}, ", issuer.URL))
	login := func(groups ...string) *rig.Agent {
		token, err := issuer.Token(map[string]any{"sub": "devin", "aud": audience, "groups": groups})
		if err != nil {
			t.Fatal(err)
		}
		agent := &rig.Agent{URL: s.server.URL, Token: token}
		if err := agent.Connect(s.ctx); err != nil {
			t.Fatal(err)
		}
		return agent
	}
	answer, err := login("agents").Call(s.ctx, "scale_deployment", fmt.Sprintf(`{"namespace":%q,"name":"web","replicas":50}`, s.namespace))
	if err != nil || answer.Structured.Status != "pending_approval" {
		t.Fatalf("%+v %v", answer, err)
	}
	op := answer.Structured.Op

	// The next token of the same subject has other groups; it sees no tool of a cluster any more.
	without := login("guests")
	tools, err := without.Tools(s.ctx)
	if err != nil || strings.Join(tools, " ") != "cancel_operation get_operation list_operations wait_for_operation" {
		t.Errorf("tools: %v %v", tools, err)
	}
	if answer, err := without.Call(s.ctx, "list_namespaces", `{}`); err != nil || answer.Structured.Status != "denied" {
		t.Errorf("%+v %v", answer, err)
	}
	if _, err := s.server.Run(s.ctx, "approvals", "approve", op); err != nil {
		t.Fatal(err)
	}
	answer, err = without.Call(s.ctx, "wait_for_operation", fmt.Sprintf(`{"op":%q}`, op))
	if err != nil || answer.Structured.Status != "denied" {
		t.Errorf("%+v %v", answer, err)
	}
	if got := s.replicas(); got != "2" {
		t.Errorf("the Deployment has %s replicas", got)
	}
}
