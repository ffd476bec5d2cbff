package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
)

// What a change wrote is in the log masked for everybody, and as it was for the
// auditors alone: in no file of the server does it stand in the clear.
func TestSealedPayloads(t *testing.T) {
	const password = "correct-horse-5512-battery"
	s := prepareStage(t, "  rules:\n  - {name: all, effect: allow}\n")
	auditor, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(s.server.Config)
	identity := filepath.Join(dir, "auditor.txt")
	config, err := os.ReadFile(s.server.Config)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		identity:        auditor.String() + "\n",
		s.server.Config: string(config) + "audit: {recipients: [" + auditor.Recipient().String() + "]}\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	s.connect()
	manifest := "apiVersion: v1\nkind: Secret\nmetadata: {name: db}\nstringData: {password: " + password + "}\n"
	answer, err := s.agent.Call(s.ctx, "apply_manifest", `{"namespace":`+quote(s.namespace)+`,"reason":"a test","manifest":`+quote(manifest)+`}`)
	if err != nil || answer.Structured.Status != "succeeded" {
		t.Fatalf("%s, %v", answer.Text, err)
	}
	op := answer.Structured.Op
	show := func(args ...string) string {
		t.Helper()
		out, err := s.server.Run(s.ctx, append([]string{"audit", "show", op, "--payloads"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for range 2 { // through the server, and from its file
		if out := show(); strings.Contains(out, password) || !strings.Contains(out, "password") {
			t.Errorf("without a key:\n%s", out)
		}
		if out := show("--identity", identity); !strings.Contains(out, password) {
			t.Errorf("with the auditor's key:\n%s", out)
		}
		if out, err := s.server.Run(s.ctx, "audit", "verify"); err != nil {
			t.Errorf("%s, %v", out, err)
		}
		if err := s.server.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join(dir, "data", file.Name()))
		if err == nil && strings.Contains(string(data), password) {
			t.Errorf("it is in %s", file.Name())
		}
	}
}
