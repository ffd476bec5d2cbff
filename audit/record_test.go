package audit

import (
	"encoding/json"
	"testing"
	"time"

	"countersign/action"
)

// The bytes of a record are what is stored, exported, hashed and read by other
// people's tools: a changed name or order here is a changed format, and needs
// another Version.
func TestRecordBytes(t *testing.T) {
	full := Record{
		V: Version, Seq: 42, ID: "0198c0de-0000-7000-8000-000000000001", Time: time.Date(2026, 3, 14, 12, 0, 0, 123456789, time.UTC), Type: ExecOutcome,
		Op: "op", Outcome: Success, Session: "s", Node: "n", DurationMS: 12,
		Principal: &action.Principal{Issuer: "https://idp", Subject: "1", Username: "bot", Groups: []string{"agents"}, Client: "devin", OnBehalfOf: "anna"},
		Source:    &Source{IP: "127.0.0.1", Transport: "http", Agent: "claude 1"},
		Tool:      &Tool{Name: "scale_deployment", Args: map[string]any{"replicas": 3, "name": "<web>"}},
		Actions:   []Action{{Cluster: "prod", Verb: "patch", Resource: "apps/v1/deployments", Subresource: "scale", Patch: "merge", Namespace: "shop", Name: "web", UID: "u", ResourceVersion: "1", ResultVersion: "2", AuditID: "a", Code: 200}},
		Policy:    &Policy{Digest: "sha256:a", Decision: "allow", Rules: []string{"r"}, Reason: "x"},
		Approval:  &Approval{State: "AUTHORIZED", By: []string{"bea (local:1000)"}, Reason: "y", PlanDigest: "sha256:b", PreviewDigest: "sha256:c", Supersedes: "z"},
		Payload:   &Payload{SHA256: "ab", Bytes: 7},
		Error:     &Error{Type: "Conflict", Message: "m"},
		Evidence:  &Evidence{Result: "applied", Detail: "d", UID: "u", ResourceVersion: "3"},
	}
	for _, row := range []struct {
		record Record
		want   string
	}{
		{full, `{"v":1,"seq":42,"id":"0198c0de-0000-7000-8000-000000000001","time":"2026-03-14T12:00:00.123456789Z","type":"exec.outcome","op":"op","outcome":"success",` +
			`"principal":{"issuer":"https://idp","subject":"1","username":"bot","groups":["agents"],"client":"devin","on_behalf_of":"anna"},` +
			`"session":"s","source":{"ip":"127.0.0.1","transport":"http","agent":"claude 1"},"tool":{"name":"scale_deployment","args":{"name":"\u003cweb\u003e","replicas":3}},` +
			`"actions":[{"cluster":"prod","verb":"patch","resource":"apps/v1/deployments","subresource":"scale","patch":"merge","namespace":"shop","name":"web","uid":"u","rv_before":"1","rv_after":"2","audit_id":"a","code":200}],` +
			`"policy":{"digest":"sha256:a","decision":"allow","rules":["r"],"reason":"x"},` +
			`"approval":{"state":"AUTHORIZED","by":["bea (local:1000)"],"reason":"y","plan_digest":"sha256:b","diff_digest":"sha256:c","supersedes":"z"},` +
			`"payload":{"sha256":"ab","bytes":7},"error":{"type":"Conflict","message":"m"},"evidence":{"result":"applied","detail":"d","uid":"u","resource_version":"3"},"node":"n","duration_ms":12}`},
		{Record{V: Version, Seq: 1, ID: "i", Type: LogOpened}, `{"v":1,"seq":1,"id":"i","time":"0001-01-01T00:00:00Z","type":"log.opened"}`},
	} {
		data, err := json.Marshal(row.record)
		if err != nil || string(data) != row.want {
			t.Errorf("%v\ngot  %s\nwant %s", err, data, row.want)
		}
		var back Record
		if err := json.Unmarshal(data, &back); err != nil {
			t.Fatal(err)
		}
		if again, _ := json.Marshal(back); string(again) != row.want {
			t.Errorf("read and written again it is %s", again)
		}
	}
}
