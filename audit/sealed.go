package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// Sealer encrypts payloads as they were before they were masked, for auditors whose
// private keys the server never sees (age-encryption.org/v1). A nil Sealer keeps none.
type Sealer struct{ recipients []age.Recipient }

// NewSealer is one for age recipients, age1...; nil for none.
func NewSealer(recipients []string) (*Sealer, error) {
	if len(recipients) == 0 {
		return nil, nil
	}
	s := &Sealer{}
	for _, text := range recipients {
		if strings.HasPrefix(strings.ToUpper(text), "AGE-SECRET-KEY-") {
			return nil, errors.New("an age identity, which is secret, stands where a recipient belongs: age-keygen -y prints its recipient, which begins with age1; the identity must not be here")
		}
		r, err := age.ParseX25519Recipient(text)
		if err != nil {
			return nil, fmt.Errorf("reading the age recipient %q: %w; age-keygen prints one, which begins with age1", text, err)
		}
		s.recipients = append(s.recipients, r)
	}
	return s, nil
}

const nonceBytes = 32

// Seal encrypts a payload and has the commitments to it put into p. What is sealed is
// a random nonce and the payload, zstd; the commitment is the HMAC-SHA256 of the
// payload with the nonce as its key, so that nobody without the auditors' keys can try
// out what a short secret is.
func (s *Sealer) Seal(payload []byte, p *Payload) ([]byte, error) {
	nonce := make([]byte, nonceBytes)
	rand.Read(nonce)
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, s.recipients...)
	if err == nil {
		_, err = w.Write(append(nonce, Pack(payload)...))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("sealing a payload: %w", err)
	}
	sum := sha256.Sum256(sealed.Bytes())
	p.Sealed, p.SealedSHA256 = commitment(nonce, payload), hex.EncodeToString(sum[:])
	return sealed.Bytes(), nil
}

// Unseal decrypts a payload and checks it against what its record commits to.
func Unseal(sealed []byte, identities []age.Identity, p *Payload) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), identities...)
	if err != nil {
		return nil, fmt.Errorf("opening a sealed payload: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxPayload))
	if err != nil {
		return nil, fmt.Errorf("opening a sealed payload: %w", err)
	}
	if len(data) < nonceBytes {
		return nil, errors.New("opening a sealed payload: it is too short")
	}
	payload, err := Unpack(data[nonceBytes:])
	if err != nil {
		return nil, fmt.Errorf("opening a sealed payload: %w", err)
	}
	if p == nil || !hmac.Equal([]byte(p.Sealed), []byte(commitment(data[:nonceBytes], payload))) {
		return nil, errors.New("opening a sealed payload: it is not what the record commits to, so it was put in another's place")
	}
	return payload, nil
}

func commitment(nonce, payload []byte) string {
	h := hmac.New(sha256.New, nonce)
	h.Write(payload)
	return hex.EncodeToString(h.Sum(nil))
}
