package audit

import (
	"bytes"
	"strings"
	"testing"

	"filippo.io/age"
)

func auditor(t *testing.T) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// A sealed payload opens for each of its recipients, for nobody else, and only beside
// the record that commits to it.
func TestSealed(t *testing.T) {
	anna, ben, eve := auditor(t), auditor(t), auditor(t)
	sealer, err := NewSealer([]string{anna.Recipient().String(), ben.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	payloads := [][]byte{{}, []byte("password: hunter2"), bytes.Repeat([]byte("a manifest\n"), 400_000)}
	var sealed [][]byte
	var records []*Payload
	for _, payload := range payloads {
		p := &Payload{SHA256: "of the masked one"}
		data, err := sealer.Seal(payload, p)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte("hunter2")) {
			t.Error("it can be read")
		}
		sealed, records = append(sealed, data), append(records, p)
	}
	for i, payload := range payloads {
		for _, identity := range []age.Identity{anna, ben} {
			if got, err := Unseal(sealed[i], []age.Identity{eve, identity}, records[i]); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("payload %d: %d bytes, %v", i, len(got), err)
			}
		}
	}

	changed := *records[1]
	changed.Sealed = "0" + strings.TrimLeft(changed.Sealed, "0")[1:]
	damaged := bytes.Clone(sealed[1])
	damaged[len(damaged)-1] ^= 1
	for _, row := range []struct {
		name   string
		sealed []byte
		who    age.Identity
		record *Payload
		want   string
	}{
		{"another's identity", sealed[1], eve, records[1], "identity did not match"},
		{"another record's payload", sealed[1], anna, records[0], "it was put in another's place"},
		{"a record without commitment", sealed[1], anna, &Payload{}, "it was put in another's place"},
		{"a record without payload", sealed[1], anna, nil, "it was put in another's place"},
		{"a changed commitment", sealed[1], anna, &changed, "it was put in another's place"},
		{"a changed payload", damaged, anna, records[1], "opening a sealed payload: "},
		{"a cut payload", sealed[1][:len(sealed[1])-20], anna, records[1], "opening a sealed payload: "},
		{"nothing", nil, anna, records[1], "opening a sealed payload: "},
		{"not ours", encrypted(t, anna, []byte("short")), anna, records[1], "it is too short"},
		{"not packed", encrypted(t, anna, bytes.Repeat([]byte("x"), 100)), anna, records[1], "opening a sealed payload: "},
	} {
		if got, err := Unseal(row.sealed, []age.Identity{row.who}, row.record); err == nil || !strings.Contains(err.Error(), row.want) || got != nil {
			t.Errorf("%s: %q, %v", row.name, got, err)
		}
	}

	// The same secret twice is not seen to be the same.
	one, two := &Payload{}, &Payload{}
	if _, err := sealer.Seal(payloads[1], one); err != nil {
		t.Fatal(err)
	}
	if _, err := sealer.Seal(payloads[1], two); err != nil {
		t.Fatal(err)
	}
	if one.Sealed == two.Sealed {
		t.Error("equal payloads have equal commitments")
	}
}

func encrypted(t *testing.T, to *age.X25519Identity, data []byte) []byte {
	t.Helper()
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return sealed.Bytes()
}

func TestNewSealer(t *testing.T) {
	if s, err := NewSealer(nil); s != nil || err != nil {
		t.Errorf("without recipients: %v, %v", s, err)
	}
	for _, bad := range []string{"", "age1", "AGE-SECRET-KEY-1SECRET", "age-secret-key-1SECRET", "anna@example.com"} {
		if _, err := NewSealer([]string{bad}); err == nil || !strings.Contains(err.Error(), "age-keygen") || strings.Contains(err.Error(), "1SECRET") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// What does not unpack is an error, also where it claims to be very long.
func TestUnpack(t *testing.T) {
	for _, row := range [][]byte{[]byte("x"), bytes.Repeat([]byte{0}, 50), Pack([]byte("hello"))[:8], {0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f}} {
		if got, err := Unpack(row); err == nil {
			t.Errorf("%x unpacks to %q", row, got)
		}
	}
	for _, payload := range []string{"", "x", strings.Repeat("y", 1<<20)} {
		if got, err := Unpack(Pack([]byte(payload))); err != nil || string(got) != payload {
			t.Errorf("%.10q: %v", payload, err)
		}
	}
}
