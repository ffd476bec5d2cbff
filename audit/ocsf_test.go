package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

var update = flag.Bool("update", false, "write testdata/*.golden anew")

// What a SIEM gets of each of these records. The golden file was read beside the
// schema: https://schema.ocsf.io/1.8.0/classes/api_activity
func TestOCSF(t *testing.T) {
	records, err := os.ReadFile("testdata/ocsf.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for line := range strings.Lines(string(records)) {
		leaf := strings.TrimSuffix(line, "\n")
		event, err := OCSF([]byte(leaf))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Indent(&got, event, "", "  "); err != nil {
			t.Fatal(err)
		}
		got.WriteByte('\n')
		required(t, []byte(leaf), event)
	}
	if *update {
		if err := os.WriteFile("testdata/ocsf.golden", got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/ocsf.golden")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("it is not testdata/ocsf.golden; run with -update and read the difference:\n%s", &got)
	}
	if _, err := OCSF([]byte("{")); err == nil {
		t.Error("half a record is an event")
	}
}

// required is what the schema demands of the class.
func required(t *testing.T, leaf, event []byte) {
	t.Helper()
	var e struct {
		Activity int   `json:"activity_id"`
		Category int   `json:"category_uid"`
		Class    int   `json:"class_uid"`
		Type     int   `json:"type_uid"`
		Severity int   `json:"severity_id"`
		Time     int64 `json:"time"`
		Metadata struct {
			Version string
			Product struct {
				Vendor string `json:"vendor_name"`
			}
			UID      string
			Sequence uint64
		}
		Actor struct {
			User    *struct{ Name, UID string }
			AppName string `json:"app_name"`
		}
		API struct {
			Operation string
			Request   *struct{ UID string }
		}
		Endpoint struct{ IP, UID, Name string } `json:"src_endpoint"`
		Hash     struct {
			Algorithm int `json:"algorithm_id"`
			Value     string
		} `json:"raw_data_hash"`
	}
	if err := json.Unmarshal(event, &e); err != nil {
		t.Fatal(err)
	}
	hash := tlog.RecordHash(leaf)
	seq, _ := Seq(leaf)
	switch {
	case e.Category != 6, e.Class != 6003, e.Type != 600300+e.Activity, e.Severity > 3, e.Time < 1e12, e.Activity == 0,
		e.Metadata.Version != "1.8.0", e.Metadata.Product.Vendor == "", e.Metadata.UID == "", e.Metadata.Sequence != seq,
		e.Actor.User == nil && e.Actor.AppName == "", e.API.Operation == "", e.API.Request != nil && e.API.Request.UID == "",
		e.Endpoint.IP+e.Endpoint.UID+e.Endpoint.Name == "", e.Hash.Algorithm != 99, e.Hash.Value != hex.EncodeToString(hash[:]):
		t.Errorf("something is missing in %s", event)
	}
}
