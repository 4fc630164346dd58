package anchor

import "slices"

// Reason says why something was refused: the value of the label reason.
type Reason string

// A directory, or a file in it.
const (
	Missing      Reason = "missing"         // the directory does not exist
	NotDirectory Reason = "not_a_directory" // the source is something else
	Unreadable   Reason = "unreadable"      // the kernel says no
	Empty        Reason = "empty"           // no file, or nothing in the file
	NoAnchor     Reason = "no_anchor"       // no file of the directory gives one
	TooManyFiles Reason = "too_many_files"
	TooMany      Reason = "too_many"      // certificates, or blocks in one file
	TooLarge     Reason = "too_large"     // the file
	BadName      Reason = "bad_name"      // the file's name is no printable text
	NotRegular   Reason = "not_regular"   // a directory, FIFO, socket, device
	DanglingLink Reason = "dangling_link" // a link to nothing, or gone since it was listed
	Outside      Reason = "outside_link"  // a link that leaves the source's directory
)

// What a file, or a block in it, is instead of a certificate.
const (
	PrivateKey  Reason = "private_key" // the whole file is refused
	UTF16       Reason = "utf16"
	HTML        Reason = "html"
	Base64      Reason = "base64" // with no armour
	PKCS7       Reason = "pkcs7"
	PKCS12      Reason = "pkcs12"
	Keystore    Reason = "java_keystore"
	Request     Reason = "certificate_request"
	CRL         Reason = "crl"
	PublicKey   Reason = "public_key"
	TrustedCert Reason = "trusted_certificate" // OpenSSL's, with trust settings
	OtherBlock  Reason = "other_block"         // a PEM block of another type
	NoCert      Reason = "no_certificate"      // nothing that is known
	Truncated   Reason = "truncated"
	BadPEM      Reason = "bad_pem"
	Trailing    Reason = "trailing_data"
	BadCert     Reason = "bad_certificate" // crypto/x509 cannot read it
)

// A certificate that can be read, and would not do, or must not be taken.
const (
	NotAllowed     Reason = "not_allowed"
	BadSerial      Reason = "bad_serial" // negative: Go 1.23 and later do not read it
	NotCA          Reason = "not_a_ca"
	Version1       Reason = "x509_v1" // it cannot say that it is a CA
	NoCertSign     Reason = "no_cert_sign"
	NoServerAuth   Reason = "no_server_auth" // its extended key usages leave TLS servers out
	BadSignature   Reason = "bad_signature"
	WeakKey        Reason = "weak_key"
	UnsupportedKey Reason = "unsupported_key"
	CriticalExt    Reason = "critical_extension" // unknown, and critical
	Expired        Reason = "expired"
	NotYetValid    Reason = "not_yet_valid"
)

// Warnings.
const (
	NotSelfSigned   Reason = "not_self_signed"
	SameSubject     Reason = "same_subject"
	WeakSignature   Reason = "weak_signature"
	NameConstraints Reason = "name_constraints"
	ServerCert      Reason = "server_certificate" // taken for one registry
	Remembered      Reason = "remembered"         // it is no longer in its source, which broke
)

// Reasons are all reasons, sorted: first those of refusals and broken sources,
// then those of warnings.
func Reasons() (refusals, warnings []Reason) {
	refusals = []Reason{
		Missing, NotDirectory, Unreadable, Empty, NoAnchor, TooManyFiles, TooMany, TooLarge, BadName, NotRegular, DanglingLink, Outside,
		PrivateKey, UTF16, HTML, Base64, PKCS7, PKCS12, Keystore, Request, CRL, PublicKey, TrustedCert, OtherBlock, NoCert, Truncated,
		BadPEM, Trailing, BadCert,
		NotAllowed, BadSerial, NotCA, Version1, NoCertSign, NoServerAuth, BadSignature, WeakKey, UnsupportedKey, CriticalExt, Expired, NotYetValid,
	}
	warnings = []Reason{NotSelfSigned, SameSubject, WeakSignature, NameConstraints, ServerCert, Remembered}
	slices.Sort(refusals)
	slices.Sort(warnings)
	return refusals, warnings
}
